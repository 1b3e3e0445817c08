"""Growth rules of published systems: fixed topologies, trees by path probability, runs that stop early."""
