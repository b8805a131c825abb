"""What a naming server does by itself: one of them at a time, by a lease in Redis."""
