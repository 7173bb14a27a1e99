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
from pycose.algorithms import Es384
from pycose.keys import CoseKey, EC2Key
from pycose.keys.curves import P384
from pycose.keys.keyops import VerifyOp
from pycose.messages import CoseMessage, Sign1Message

COLLECTION, PLATFORM, REALM = 399, 44234, 44241
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


class Wrong(Exception):
    """What does not hold."""


def hold(condition, why):
    """Objects unless the condition holds."""
    if not condition:
        raise Wrong(why)


def key_of(encoded, whose):
    """A public key of P-384 from a COSE_Key."""
    key = CoseKey.decode(encoded)
    hold(isinstance(key, EC2Key) and key.crv is P384, f"{whose} key is not of P-384")
    hold(len(key.x) == len(key.y) == 48, f"{whose} key is cut short")
    key.key_ops = [VerifyOp]
    return key


def signed(encoded, whose, find_key):
    """The claims of a COSE_Sign1, once its signature holds."""
    message = CoseMessage.decode(encoded)
    hold(isinstance(message, Sign1Message), f"{whose} token is no COSE_Sign1")
    algorithms = list(message.phdr.values())
    hold(algorithms == [Es384], f"{whose} token is not signed by ES384 alone")
    claims = cbor2.loads(message.payload)
    message.key = key_of(find_key(message, claims), whose)
    hold(message.verify_signature(), f"{whose} token's signature does not hold")
    return claims, message.key


def named(claims, names, whose):
    """Claims by name: each of them once, and no other."""
    hold(set(claims) == set(names), f"{whose} claims are {sorted(claims)}")
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
        hold(len(measurement) == length, f"a measurement is not {length} bytes")
    hash_of_key = HASHES[claims["public key hash"]](claims["public key"]).digest()
    hold(platform["challenge"] == hash_of_key, "the platform does not name the realm's key")


def verify(token):
    """Both sets of claims of a token, once all that must hold does."""
    collection = cbor2.loads(token)
    hold(isinstance(collection, cbor2.CBORTag), "the token has no tag")
    hold(collection.tag == COLLECTION, f"the token's tag is {collection.tag}")
    hold(set(collection.value) == {PLATFORM, REALM}, "the token is not of two tokens")
    hold(token == cbor2.dumps(collection), "the token is not all there is, or not canonical")
    claims, key = signed(
        collection.value[PLATFORM], "the platform's", lambda message, _: kid(message)
    )
    platform = named(claims, PLATFORM_CLAIMS, "the platform's")
    check_platform(platform, key)
    claims, _ = signed(
        collection.value[REALM], "the realm's", lambda _, claims: claims[44237]
    )
    realm = named(claims, REALM_CLAIMS, "the realm's")
    check_realm(realm, platform)
    return platform, realm


def kid(message):
    """What the unprotected header says of the key."""
    values = list(message.uhdr.values())
    hold(len(values) == 1, "the platform token does not say whose it is")
    return values[0]


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
        return str(value)

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
