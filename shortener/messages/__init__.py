"""This package handles messages: it validates rewrite requests, detects URLs, replaces them by short links, queues messages for
gateways, and records delivery reports."""
