"""Inference over gRPC: Open Inference v2, TensorFlow Serving, health checks and reflection.

HTTP/2 is spoken by an asyncio protocol of our own, on the loop that serves REST, so that calls of
both run in the same batches. Messages are protobuf's own classes, from descriptors of our own pool.
"""
