"""Offline data: DSRL files (`schema`), behaviour data (`collect`), device-resident batches (`sampler`)."""
