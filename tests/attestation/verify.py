#!/usr/bin/env python3
"""Verifies a CCA attestation token (docs/attestation.md), with pycose and cbor2.

    verify.py TOKEN [--challenge HEX] [--personalization HEX] [--rim HEX]
              [--rem NUMBER HEX]... [--hash sha-256|sha-512]
              [--image HEX] [--instance HEX]

Reads a token from a file, verifies both signatures and that the platform names the
realm's key, compares claims with what is given, and prints all of them. The exit
status is 0 only when everything holds.
"""

import argparse
import hashlib
import sys

import cbor2
from pycose.keys import CoseKey, EC2Key
from pycose.keys.curves import P384
from pycose.keys.keyops import VerifyOp
from pycose.messages import CoseMessage, Sign1Message

COLLECTION, PLATFORM, REALM = 399, 44234, 44241
KID, PROTECTED = 4, bytes.fromhex("a1013822")
HASHES = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}
REALM_CLAIMS = {
    10: "challenge",
    265: "profile",
    44235: "personalization",
    44236: "hash",
    44237: "public key",
    44238: "initial measurement",
    44239: "extensible measurements",
    44240: "public key hash",
}
PLATFORM_CLAIMS = {
    10: "challenge",
    256: "instance id",
    265: "profile",
    2395: "lifecycle",
    2396: "implementation id",
    2399: "software components",
    2401: "config",
    2402: "hash",
}
# What is not here is bytes.
TYPES = {265: str, 2395: int, 2399: list, 2402: str, 44236: str, 44239: list, 44240: str}
COMPONENT = {1: str, 2: bytes, 4: str, 5: bytes, 6: str}


class Wrong(Exception):
    """What does not hold."""


def hold(condition, why):
    """Objects unless the condition holds."""
    if not condition:
        raise Wrong(why)


def decoded(encoded, what):
    """The value of CBOR that is all there is and written in one way: lengths are there
    and no longer than they must be, and no label stands twice (RFC 9052, 3)."""
    value = cbor2.loads(encoded)
    hold(encoded == cbor2.dumps(value), f"{what} is not all there is, or not canonical")
    return value


def key_of(encoded, whose):
    """A public key of P-384 from a COSE_Key."""
    decoded(encoded, f"{whose} key")
    key = CoseKey.decode(encoded)
    hold(isinstance(key, EC2Key) and key.crv is P384, f"{whose} key is not of P-384")
    hold(len(key.x) == len(key.y) == 48, f"{whose} key is cut short")
    key.key_ops = [VerifyOp]
    return key


def signed(encoded, whose, unprotected, find_key):
    """The claims of a COSE_Sign1, once its signature holds; `unprotected` are the labels
    of the header that no signature covers."""
    envelope = decoded(encoded, f"{whose} token")
    message = CoseMessage.decode(encoded)
    hold(isinstance(message, Sign1Message), f"{whose} token is no COSE_Sign1")
    protected, header = envelope.value[:2]
    hold(protected == PROTECTED, f"{whose} token is not signed by ES384 alone")
    hold(list(header) == unprotected, f"{whose} token's unprotected header is another")
    claims = decoded(message.payload, f"{whose} claims")
    message.key = key_of(find_key(header, claims), whose)
    hold(message.verify_signature(), f"{whose} token's signature does not hold")
    return claims, message.key


def named(claims, names, whose):
    """Claims by name: each of them once, no other, and each of its type."""
    hold(set(claims) == set(names), f"{whose} claims are {sorted(claims)}")
    for number, value in claims.items():
        kind = TYPES.get(number, bytes)
        hold(type(value) is kind, f"{whose} {names[number]} is no {kind.__name__}")
    return {names[number]: value for number, value in claims.items()}


def check_platform(claims, key):
    """What must hold of any platform token of Undercroft's."""
    hold(
        claims["profile"] == "tag:arm.com,2023:cca_platform#1.0.0",
        "the platform's profile is another",
    )
    point = b"\x04" + key.x + key.y
    instance = b"\x01" + hashlib.sha256(point).digest()
    hold(claims["instance id"] == instance, "the instance id is not the key's")
    hold(len(claims["implementation id"]) == 32, "the implementation id is not 32 bytes")
    hold(claims["lifecycle"] == 0, "the lifecycle claims to be known")
    hold(len(claims["software components"]) == 1, "there is more than EL2")
    el2 = claims["software components"][0]
    hold(set(el2) == set(COMPONENT), f"EL2's claims are {sorted(el2)}")
    for number, kind in COMPONENT.items():
        hold(type(el2[number]) is kind, f"EL2's {number} is no {kind.__name__}")
    hold(len(el2[2]) == len(el2[5]) == 32, "EL2's measurement or signer is not 32 bytes")
    hold(claims["hash"] in HASHES, "the platform's hash is unknown")


def check_realm(claims, platform):
    """What must hold of any realm token."""
    hold(claims["profile"] == "tag:arm.com,2023:realm#1.0.0", "the realm's profile is another")
    for name in ("challenge", "personalization"):
        hold(len(claims[name]) == 64, f"the {name} is not 64 bytes")
    hold(claims["hash"] in HASHES, "the realm's hash is unknown")
    length = HASHES[claims["hash"]]().digest_size
    extensible = claims["extensible measurements"]
    hold(len(extensible) == 4, "there are not four extensible measurements")
    for measurement in [claims["initial measurement"], *extensible]:
        hold(type(measurement) is bytes, "a measurement is not bytes")
        hold(len(measurement) == length, f"a measurement is not {length} bytes")
    hash_of_key = HASHES[claims["public key hash"]](claims["public key"]).digest()
    hold(platform["challenge"] == hash_of_key, "the platform does not name the realm's key")


def verify(token):
    """Both sets of claims of a token, once all that must hold does."""
    collection = decoded(token, "the token")
    hold(isinstance(collection, cbor2.CBORTag), "the token has no tag")
    hold(collection.tag == COLLECTION, f"the token's tag is {collection.tag}")
    hold(set(collection.value) == {PLATFORM, REALM}, "the token is not of two tokens")
    claims, key = signed(
        collection.value[PLATFORM], "the platform's", [KID], lambda header, _: header[KID]
    )
    platform = named(claims, PLATFORM_CLAIMS, "the platform's")
    check_platform(platform, key)
    claims, _ = signed(
        collection.value[REALM], "the realm's", [], lambda _, claims: claims[44237]
    )
    realm = named(claims, REALM_CLAIMS, "the realm's")
    check_realm(realm, platform)
    return platform, realm


def expected(arguments, platform, realm):
    """Pairs of what is claimed and what was to be."""
    software = platform["software components"][0]
    pairs = [
        ("the challenge", realm["challenge"], arguments.challenge),
        ("the personalization", realm["personalization"], arguments.personalization),
        ("the RIM", realm["initial measurement"], arguments.rim),
        ("the hash", realm["hash"], arguments.hash),
        ("EL2's measurement", software[2], arguments.image),
        ("the instance", platform["instance id"][1:], arguments.instance),
    ]
    for number, measurement in arguments.rem:
        hold(number in ("1", "2", "3", "4"), "REMs are numbered 1 to 4")
        claimed = realm["extensible measurements"][int(number) - 1]
        pairs.append((f"REM {number}", claimed, bytes.fromhex(measurement)))
    return pairs


def show(title, claims):
    """Prints claims, bytes as hexadecimal."""

    def text(value):
        if isinstance(value, bytes):
            return value.hex()
        if isinstance(value, list):
            return "[" + ", ".join(map(text, value)) + "]"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{k}: {text(v)}" for k, v in value.items()) + "}"
        return ascii(value)[1:-1] if isinstance(value, str) else str(value)

    for name, value in claims.items():
        print(f"{title} {name}: {text(value)}")


def main():
    """Does what the words above say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("token")
    for name in ("challenge", "personalization", "rim", "image", "instance"):
        parser.add_argument(f"--{name}", type=bytes.fromhex)
    parser.add_argument("--rem", nargs=2, action="append", default=[])
    parser.add_argument("--hash", choices=sorted(HASHES))
    arguments = parser.parse_args()
    with open(arguments.token, "rb") as file:
        token = file.read()
    try:
        platform, realm = verify(token)
        for what, claimed, wanted in expected(arguments, platform, realm):
            hold(wanted is None or claimed == wanted, f"{what} is another")
    except Wrong as why:
        sys.exit(f"{arguments.token}: {why}")
    except Exception as error:  # whatever a library makes of what is no token
        sys.exit(f"{arguments.token}: no token: {error!r}")
    show("platform", platform)
    show("realm", realm)


if __name__ == "__main__":
    main()
