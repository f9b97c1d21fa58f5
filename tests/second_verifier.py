#!/usr/bin/env python3
"""A second verifier of evidence packs: signature, checksum, manifest and path rules, and nothing else.

Written from the format's text, not from the Rust verifier, so that an error in one is seen by the other. It needs Python 3.9 and
the package `cryptography`. It leaves out trust stores, the reports inside a pack, edit metadata and replay.

Prints one JSON object {"exit": code, "classes": [...]} and ends with that code; --help lists the options.
"""

import argparse
import base64
import binascii
import hashlib
import json
import os
import re
import stat
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

MANIFEST, CHECKSUMS, SIGNATURE = "manifest.json", "checksums.sha256", "manifest.signature.json"
MIRRORS = {"metadata/" + name: name for name in (MANIFEST, SIGNATURE, CHECKSUMS)}
HEX = re.compile(r"[0-9a-f]{64}")
PREFIXED = re.compile(r"sha256:[0-9a-f]{64}")
MATERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LINE = re.compile(r"([0-9A-Fa-f]{64}) [ *](.+)", re.DOTALL)
LIMIT = 64 << 20


class Refused(Exception):
    """The stage that failed; its arguments are the exit code and the classes of its findings."""


def strict_json(data):
    """Parses JSON without repeated keys, NaN or a byte order mark."""

    def pairs(items):
        if len({key for key, _ in items}) != len(items):
            raise ValueError("a key is repeated")
        return dict(items)

    def constant(name):
        raise ValueError(f"{name} is no JSON")

    text = data.decode("utf-8")
    if text.startswith("\ufeff"):
        raise ValueError("there is a byte order mark")
    return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)


def read(path, limit=LIMIT):
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError("the file is too large")
    return data


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def resolve(root, name):
    """Where a name leads: ('file', path), ('absent', None) or ('outside', None). Follows links and `..`."""
    if "\0" in name or name.startswith("/"):
        return ("absent" if "\0" in name else "outside"), None
    todo, below, links = list(reversed(name.split("/"))), [], 0
    while todo:
        part = todo.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if not below:
                return "outside", None
            below.pop()
            continue
        here = os.path.join(root, *below, part)
        if os.path.islink(here):
            target, links = os.readlink(here), links + 1
            if links > 40 or target.startswith("/"):
                return ("absent" if links > 40 else "outside"), None
            todo.extend(reversed(target.split("/")))
        else:
            below.append(part)
    path = os.path.join(root, *below)
    return ("file", path) if os.path.isfile(path) else ("absent", None)


def manifest_is_valid(m):
    """The schema of the manifest."""
    text = lambda v, least=1: isinstance(v, str) and len(v) >= least
    number = lambda v: isinstance(v, (int, float)) and not isinstance(v, bool)
    whole = lambda v: number(v) and v >= 0 and v == int(v)
    prefixed = lambda v: isinstance(v, str) and PREFIXED.fullmatch(v) is not None
    optional = lambda o, key, test: key not in o or test(o[key])
    backing = lambda o: isinstance(o, dict) and optional(o, "path", text) and optional(o, "digest", prefixed)
    listed = lambda test: lambda v: isinstance(v, list) and all(test(item) for item in v)
    string = lambda v: isinstance(v, str)
    mapping = lambda v: isinstance(v, dict)
    required = lambda o: text(o.get("path")) and prefixed(o.get("digest"))
    or_null = lambda v: v is None or number(v)
    environment = lambda o: (
        backing(o)
        and all(optional(o, key, string) for key in ("recorded_at", "platform", "python_version", "gpu_name"))
        and all(optional(o, key, or_null) for key in ("gpu_count", "gpu_memory_gb"))
        and optional(o, "fp8_native_support", lambda v: isinstance(v, bool))
    )
    material = lambda o: mapping(o) and string(o.get("name")) and MATERIAL.fullmatch(o["name"]) and required(o)
    fields = {
        **dict.fromkeys(("suite", "determinism", "run_dir"), text),
        "evidence_level": lambda v: v in ("low", "medium", "high"),
        "network_mode": lambda v: v in ("offline", "online"),
        "subject": lambda o: mapping(o) and text(o.get("name")) and required(o),
        "invocation": lambda o: mapping(o) and optional(o, "parameters", mapping) and optional(o, "config_source", backing),
        "environment": environment,
        "materials": listed(material),
        "verification": mapping,
        "signing_key_fingerprint": lambda v: text(v, 16),
        "generated_at": lambda v: text(v, 20),
        "invarlock_version": string,
        "repeats": whole,
        "determinism_repeats": lambda v: v is None or isinstance(v, (dict, list)),
        "builder": lambda o: mapping(o) and text(o.get("id")) and text(o.get("name")) and optional(o, "version", string),
        "model_list": listed(string),
        "models": listed(lambda o: mapping(o) and text(o.get("model_id")) and string(o.get("revision"))),
        "artifacts": listed(text),
        "model_licenses": lambda o: mapping(o) and all(string(v) for v in o.values()),
    }
    return (
        mapping(m)
        and m.get("format") == "evidence-pack-v1"
        and m.get("checksums_sha256") == CHECKSUMS
        and string(m.get("checksums_sha256_digest"))
        and HEX.fullmatch(m["checksums_sha256_digest"]) is not None
        and all(optional(m, key, test) for key, test in fields.items())
    )


def references(m):
    """The files that the manifest binds by path and digest."""
    found = [m.get("subject"), (m.get("invocation") or {}).get("config_source"), m.get("environment")]
    for reference in found + m.get("materials", []):
        if reference is None:
            continue
        path, digest = reference.get("path"), reference.get("digest")
        if (path is None) != (digest is None):
            raise Refused(4, ["format.field"])
        if path is not None:
            yield path, digest[len("sha256:") :]


def check_signature(data, manifest_bytes, manifest, accepted):
    try:
        bundle = strict_json(data)
        key, signature = bundle["public_key"], bundle["signature"]
        good = (
            bundle["format"] == "evidence-pack-signature-v1"
            and bundle["algorithm"] == "ed25519"
            and key["encoding"] == "pem"
            and signature["encoding"] == "base64"
            and key["value"].strip()
            and signature["value"].strip()
            and PREFIXED.fullmatch(bundle["signing_key_fingerprint"])
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise Refused(5, ["signature.bundle"])
    try:
        public = load_pem_public_key(key["value"].encode("utf-8"))
        if not isinstance(public, Ed25519PublicKey):
            raise ValueError("another kind of key")
        raw = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
        fingerprint = "sha256:" + hashlib.sha256(raw).hexdigest()
        if bundle["signing_key_fingerprint"] != fingerprint:
            raise Refused(5, ["signature.self_fingerprint"])
        public.verify(base64.b64decode(signature["value"], validate=True), manifest_bytes)
    except (ValueError, TypeError, binascii.Error, InvalidSignature):
        raise Refused(5, ["signature.invalid"]) from None
    claimed = manifest.get("signing_key_fingerprint")
    classes = ["signature.manifest_fingerprint"] if claimed and claimed != fingerprint else []
    if accepted and fingerprint not in accepted:
        classes.append("signature.untrusted_signer")
    if classes:
        raise Refused(5, classes)


def check_integrity(root, manifest, bound, strict):
    classes, covered, escapes = [], set(), set()

    def compare(name, digest, escape, absent, changed):
        place, path = resolve(root, name)
        if place == "outside":
            escapes.add(name)
        kind = {"outside": escape, "absent": absent}.get(place) or (changed if sha256(path) != digest else None)
        classes.extend(["integrity." + kind] if kind else [])

    data = read(os.path.join(root, CHECKSUMS))
    if hashlib.sha256(data).hexdigest() != manifest["checksums_sha256_digest"]:
        classes.append("integrity.binding")
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        lines = ["not UTF-8"]
    for line in filter(None, (line.rstrip() for line in lines)):
        match = LINE.fullmatch(line)
        if match is None:
            classes.append("integrity.line_syntax")
            continue
        name = match[2].replace("\\", "/")
        while name.startswith("./"):
            name = name[2:]
        if "\\" in match[2] or name in covered:
            classes.append("integrity.line_syntax")
        if name in covered:
            continue
        covered.add(name)
        compare(name, match[1].lower(), "path_escape", "missing_file", "digest")
    for mirror, original in MIRRORS.items():
        mirror, original = os.path.join(root, mirror), os.path.join(root, original)
        if os.path.isfile(mirror) and not (os.path.isfile(original) and read(mirror) == read(original)):
            classes.append("integrity.mirror")
    for name, digest in bound:
        compare(name, digest, "ref_escape", "ref_missing", "ref_digest")
    extra, hardening, folded = False, [], set()
    for folder, folders, files in os.walk(root):
        for entry in folders + files:
            path = os.path.join(folder, entry)
            name = os.path.relpath(path, root)
            if os.path.islink(path):
                leads_out = os.path.isfile(path) and resolve(root, name)[0] == "outside"
                if name not in escapes and (leads_out or strict):
                    hardening.append("integrity.link")
            elif not stat.S_ISDIR(os.lstat(path).st_mode) and not os.path.isfile(path) and strict:
                hardening.append("integrity.link")
            if name.lower() in folded and strict:
                hardening.append("integrity.collision")
            folded.add(name.lower())
            ignored = entry == ".DS_Store" or "__MACOSX" in name.split("/")
            control = name in (MANIFEST, CHECKSUMS, SIGNATURE) or name in MIRRORS
            extra |= os.path.isfile(path) and not (ignored or control or name in covered)
    subject = (manifest.get("subject") or {}).get("path", "")
    place, path = resolve(root, subject) if subject.endswith(".json") else ("absent", None)
    if strict and place == "file":
        try:
            strict_json(read(path, 256 << 20))
        except (ValueError, RecursionError):
            hardening.append("integrity.ref_digest")
    if strict and extra:
        classes.append("integrity.extra_files")
    if classes + hardening:
        raise Refused(6, classes + hardening)


def verify(options):
    root = os.path.realpath(options.pack)
    if not os.path.isdir(root):
        raise Refused(3, ["missing.pack"])
    for name in (MANIFEST, CHECKSUMS):
        if not os.path.isfile(os.path.join(root, name)):
            raise Refused(3, ["missing." + name.split(".")[0]])
    try:
        manifest_bytes = read(os.path.join(root, MANIFEST))
        manifest = strict_json(manifest_bytes)
    except (ValueError, RecursionError):
        raise Refused(4, ["format.json"]) from None
    if not manifest_is_valid(manifest):
        raise Refused(4, ["format.schema"])
    bound = list(references(manifest))
    signature = os.path.join(root, SIGNATURE)
    if os.path.isfile(signature):
        check_signature(read(signature), manifest_bytes, manifest, options.accept)
    elif options.strict or not options.allow_unsigned:
        raise Refused(5, ["signature.missing"])
    check_integrity(root, manifest, bound, options.strict)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag in ("--strict", "--allow-unsigned"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--accept", action="append", default=[], metavar="FINGERPRINT")
    parser.add_argument("pack")
    code, classes = 0, []
    try:
        verify(parser.parse_args())
    except Refused as refused:
        code, classes = refused.args[0], sorted(set(refused.args[1]))
    print(json.dumps({"exit": code, "classes": classes}))
    return code


if __name__ == "__main__":
    sys.exit(main())
