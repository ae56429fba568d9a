"""The process that claims tasks fairly, runs their bodies, renews their leases and reports how they ended."""
