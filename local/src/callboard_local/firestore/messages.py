"""The protobuf messages of `google.firestore.v1`, as Google's own client library carries them.

At run time these are the raw protobuf classes, which are several times faster than the library's proto-plus
wrappers. For the type checker they are those wrappers: the raw classes have no types.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.cloud.firestore_v1.types import *  # noqa: F403
else:
    import proto
    from google.cloud.firestore_v1 import types

    globals().update(
        {
            name: wrapper.pb()
            for name, wrapper in vars(types).items()
            if isinstance(wrapper, type) and issubclass(wrapper, proto.Message)
        }
    )
