"""The messages of `contract/protos`, as protobuf classes in a descriptor pool of their own.

In protobuf's default pool their names would clash with those that the stock clients register.
"""

from functools import cache
from importlib.resources import files
from typing import Any


def message(name: str) -> Any:
    """The class of a message by its full name, such as `inference.ModelInferRequest`."""
    from google.protobuf.message_factory import GetMessageClass

    return GetMessageClass(pool().FindMessageTypeByName(name))


def service(name: str) -> Any:
    """The descriptor of a service by its full name."""
    return pool().FindServiceByName(name)


@cache
def pool() -> Any:
    """The pool, which knows every file of the descriptor set."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from google.protobuf.descriptor_pool import DescriptorPool

    found = DescriptorPool()
    data = (files("tapster.contract") / "protos" / "descriptors.binpb").read_bytes()
    for file in FileDescriptorSet.FromString(data).file:
        found.Add(file)
    return found
