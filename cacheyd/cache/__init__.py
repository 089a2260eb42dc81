"""The ways of a request: hit, flight, revalidation, bypass, refusal."""
