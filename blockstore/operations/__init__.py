"""Operations: their catalogue, the statuses they cover, the queue, the runner and the recovery."""
