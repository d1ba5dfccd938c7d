"""Requests to worker groups: a pure model of workers, queues and what a failover finds again."""
