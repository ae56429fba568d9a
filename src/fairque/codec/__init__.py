"""What a queue's contents look like in Redis to who has no key: signed, encrypted, compressed."""
