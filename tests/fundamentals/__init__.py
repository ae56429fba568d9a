"""In this order they read as the tutorial: tasks, enqueue, priorities, worker, retries, results, introspection."""
