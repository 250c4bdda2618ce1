"""Names that travel beside the messages: metadata keys and the lines of the side socket."""

CLIENT_KEY = "hisparse-client"  # metadata of a call: which client makes it
ERROR_KEY = "hisparse-error"  # trailing metadata of a status: the exception's name
DETAILS_KEY = "grpc-status-details-bin"  # trailing metadata: error_details.proto
AUTHORIZATION_KEY = "authorization"  # metadata of a call over TCP: "Bearer TOKEN"

GREETING = "HISPARSE 1"  # the server's first word, and the version of the lines
FETCH = "FETCH"
ALIVE = "ALIVE"
OK = "OK"
ERROR = "ERROR"
MAX_LINE_BYTES = 4096

MAX_MESSAGE_BYTES = 4 << 20


def side_socket_path(socket_path: str) -> str:
    """Where the server of `socket_path` hands out descriptors."""
    return socket_path + ".fd"
