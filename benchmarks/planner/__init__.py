"""Predicted against measured throughput of real daemons on this machine."""
