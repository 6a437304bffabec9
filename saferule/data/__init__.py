"""Offline data: DSRL files (`schema`), behaviour data (`collect`), DSRL's own (`fetch`), batches (`batches`)."""
