"""What a task is before it reaches Redis: the decorator, arguments, options, pipelines, the wire message."""
