"""Media in, shards out: plan, fetch, pack."""
