"""The network between coordinator and sites.

gRPC for Python cannot be told to speak TLS 1.3 only, but it reads this variable when it is first
imported: a 1.2 suite that no EC certificate can use leaves 1.3 alone. So import `link` before `grpc`
or `flwr`; `link.tls` refuses to work where that went wrong.
"""

import os
import sys

CIPHERS = "ECDHE-RSA-AES128-GCM-SHA256"

TLS13_ONLY = "grpc" not in sys.modules or os.environ.get("GRPC_SSL_CIPHER_SUITES") == CIPHERS
if TLS13_ONLY:
    os.environ["GRPC_SSL_CIPHER_SUITES"] = CIPHERS
