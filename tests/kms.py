"""A local AWS KMS: moto's, which signs a digest as it is, as AWS does; moto itself would hash it again.

Prints its URL and the id of a new key for secp256k1, and serves until standard input ends.
"""

import sys

import boto3
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from moto.kms.utils import ECDSAPrivateKey
from moto.server import ThreadedMotoServer


def sign(self, message, signing_algorithm):
    return self.private_key.sign(message, ec.ECDSA(utils.Prehashed(hashes.SHA256())))


ECDSAPrivateKey.sign = sign
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
url = "http://{}:{}".format(*server.get_host_and_port())
account = {"aws_access_key_id": "somebody", "aws_secret_access_key": "a secret", "region_name": "eu-west-1"}
key = boto3.client("kms", endpoint_url=url, **account).create_key(KeySpec="ECC_SECG_P256K1", KeyUsage="SIGN_VERIFY")
print(url, key["KeyMetadata"]["KeyId"], flush=True)
sys.stdin.read()
server.stop()
