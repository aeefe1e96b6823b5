"""Gateways: the systems to which messages are handed on, and the dispatcher that hands them on."""
