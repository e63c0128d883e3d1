"""Shards in, numbers out: loader, engines, loop, evaluation, prediction."""
