"""What projects and pools hold: quota, reservations, and what the pools report."""
