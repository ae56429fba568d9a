"""Tasks in processes of their own: the server that forks them, the pool that keeps them warm, what runs inside."""
