"""The words everyone speaks: chunk, batch, request, parameters, sampler state, choose, verifiers."""
