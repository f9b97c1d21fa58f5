#!/usr/bin/env python3
"""Checks the Ed25519 signature of a DSSE envelope, written from the protocol's text: dsse.py ENVELOPE PUBLIC_KEY.

Prints the payload; ends with 1 where the signature does not fit. It needs the package `cryptography`.
"""

import base64
import json
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_public_key


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        envelope = json.load(file)
    with open(sys.argv[2], "rb") as file:
        key = load_pem_public_key(file.read())
    kind, payload = envelope["payloadType"].encode(), base64.b64decode(envelope["payload"])
    signed = b" ".join([b"DSSEv1", b"%d" % len(kind), kind, b"%d" % len(payload), payload])
    for signature in envelope["signatures"]:
        try:
            key.verify(base64.b64decode(signature["sig"], validate=True), signed)
        except InvalidSignature:
            continue
        sys.stdout.write(payload.decode("utf-8"))
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
