"""Operations: what they are, the statuses that they cover, the queue, the runner, recovery."""
