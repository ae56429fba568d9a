"""What users hold: the queue, handles of tasks and pipelines, and all that can be asked of them."""
