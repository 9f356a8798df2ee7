"""What `benchmarks/peers.py` is made of: a counting server, and a worker that speaks to one memory system."""
