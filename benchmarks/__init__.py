"""Speed against peers and physical limits; each file prints one table."""
