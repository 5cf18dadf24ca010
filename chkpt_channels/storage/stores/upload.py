"""The calls of S3 that write: one object is uploaded in parts, and its name shows the old object or the complete new one.

Stores speak S3 with gaps. What they answer is compared with what was asked for; a condition that a store may ignore is tried out
on a name of our own first.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import hashlib
import os
import posixpath
import shlex
import threading
import zlib
from collections.abc import Mapping
from typing import Any

from chkpt_channels.core.errors import FileSystemError, Location, OutputExistsError
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.storage.stores.address import Address, is_switched_on
from chkpt_channels.storage.stores.connection import CHANGED, CREDENTIALS, RETRIES, SILENT_SECONDS, endpoint

COPYING_SECONDS = 300
"""After so long without an answer a copy has failed: a store that copies is silent meanwhile."""
_KEPT = ("CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage", "ContentType", "Expires", "Metadata",
         "StorageClass", "ServerSideEncryption", "SSEKMSKeyId", "BucketKeyEnabled", "WebsiteRedirectLocation")  # fmt: skip
"""What an upload does not inherit. Source: Amazon S3 API Reference, CreateMultipartUpload."""
_NOT_THERE = ("NoSuchKey", "404", "NotFound")
_NO_COPIES = ("NotImplemented", "MethodNotAllowed", "405", "501")
_TAKEN = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
_HONOURS: dict[tuple[str, str], bool] = {}  # of each server and bucket, whether it honours conditions


class NoCopies(Exception):
    """The store does not copy parts."""


class _NothingThere(Exception):
    """The store has no such object, or upload."""


class ObjectHead(NamedTuple):
    """What a store says of an object; `about` goes along into an upload."""

    tag: str
    size: int
    about: Mapping[str, Any]


class Sent(NamedTuple):
    """A part as the store has it."""

    number: int
    size: int
    tag: str


class Client:
    """One bucket's calls; safe to use from several threads. `requests` counts them."""

    def __init__(self, address: Address, location: Location) -> None:
        self.location, self.bucket, self.key = location, address.home, address.name
        try:
            import boto3
            from botocore import UNSIGNED
            from botocore.config import Config
        except ImportError:
            raise location.system("writing to a store needs boto3", hint="pip install 'chkpt-channels[s3]'") from None
        url = endpoint(location) or None
        retries = {"total_max_attempts": RETRIES + 1, "mode": "standard"}
        more: dict[str, Any] = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
        if is_switched_on("AWS_SKIP_SIGNATURE"):
            more["signature_version"] = UNSIGNED
        config = Config(retries=retries, connect_timeout=SILENT_SECONDS, read_timeout=COPYING_SECONDS, **more)
        with self._telling({}):
            words = {"endpoint_url": url, "region_name": os.environ.get("AWS_REGION") or None}
            self._client = boto3.session.Session().client("s3", config=config, **words)
        self.requests, self._lock = 0, threading.Lock()
        self._client.meta.events.register("before-send.s3", self._count)

    def _count(self, **_: object) -> None:
        with self._lock:
            self.requests += 1

    @contextlib.contextmanager
    def _telling(self, meanings: Mapping[str, Exception]) -> Any:
        """Raise what the library raises as FileSystemError, in words of our own: its messages show URLs and keys. An answer whose
        code is among `meanings` is raised as what it means."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in meanings:
                raise meanings[code] from error
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
            if code in ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"):
                raise self.location.system(f"its server refuses access ({code})", hint=CREDENTIALS) from error
            raise self.location.system(f"its server answers {status} {code}".rstrip()) from error
        except BotoCoreError as error:
            kind = type(error).__name__
            if kind in ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError"):
                raise self.location.system("no credentials are found", hint=CREDENTIALS) from error
            words = {"ReadTimeoutError": "stopped answering", "ConnectionClosedError": "cut the answer short"}
            what = words.get(kind, "cannot be reached" if "Connect" in kind else f"cannot be used: {kind}")
            raise self.location.system(f"its server {what}") from error

    def head(self, bucket: str | None = None, key: str | None = None) -> ObjectHead | None:
        """What is there of a name, by default the output's; None where nothing is."""
        try:
            meanings = dict.fromkeys(_NOT_THERE, _NothingThere())
            found = self.call("head_object", meanings, Bucket=bucket or self.bucket, Key=key or self.key)
        except _NothingThere:
            return None
        about = {name: found[name] for name in _KEPT if found.get(name)}
        return ObjectHead(found["ETag"], found["ContentLength"], about)

    def listed(self, prefix: str) -> dict[str, int]:
        """The keys that begin so, each with its size."""
        with self._telling({}):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            return {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", ())}

    def at(self, key: str) -> Client:
        """The same client for another object; the requests are counted by the first."""
        other = copy.copy(self)
        other.key, other.location, other.requests = key, Location(f"s3://{self.bucket}/{key}"), 0
        return other

    def put(self, data: bytes, about: Mapping[str, Any], *, is_new: bool) -> None:
        """Write a small object at once. Raises OutputExistsError where the name is taken, of `is_new`."""
        words = {**about, "ContentMD5": _md5(data), **({"IfNoneMatch": "*"} if is_new else {})}
        self.call("put_object", dict.fromkeys(_TAKEN, taken(self.location)), Key=self.key, Body=data, **words)

    def remove(self, tag: str) -> bool:
        """Remove the object where it is the one with this tag; whether nothing of it is left."""
        head = self.head()
        if head and head.tag.strip('"') == tag.strip('"'):
            self._delete(self.key)
            return True
        return head is None

    def begin(self, about: Mapping[str, Any], *, whole_crc: bool, key: str | None = None) -> Upload:
        """A new upload. With `whole_crc` the store is asked to check the CRC-32 of the whole object."""
        crc = {"ChecksumAlgorithm": "CRC32", "ChecksumType": "FULL_OBJECT"} if whole_crc else {}
        began = self.call("create_multipart_upload", Key=key or self.key, **about, **crc)
        return Upload(self, key or self.key, began["UploadId"], has_crc=whole_crc)

    def honours_conditions(self) -> bool:
        """Whether the store refuses to complete an upload under a name that is taken: tried once, at a name of our own beside the
        output's, of which nothing stays."""
        known = (self._client.meta.endpoint_url, self.bucket)
        if known not in _HONOURS:
            _HONOURS[known] = self._tries_conditions()
        return _HONOURS[known]

    def _tries_conditions(self) -> bool:
        probe = posixpath.join(posixpath.dirname(self.key), f".chkpt-channels-{os.urandom(8).hex()}.probe")
        upload = None
        self.call("put_object", Key=probe, Body=b"")
        try:
            upload = self.begin({}, whole_crc=False, key=probe)
            try:
                upload.complete([upload.send(1, b"x")], {"IfNoneMatch": "*"})
            except OutputExistsError:
                return True
            except Exception:  # it refuses the condition itself
                return False
            upload = None
            return False
        finally:
            if upload:
                upload.abort()
            self._delete(probe)

    def _delete(self, key: str) -> None:
        try:
            self.call("delete_object", Key=key)
        except FileSystemError as error:
            what = f"{error.what}: its empty object {key} could not be removed"
            raise self.location.system(what, hint=f"aws s3 rm {shlex.quote(f's3://{self.bucket}/{key}')}") from error

    def call(self, name: str, meanings: Mapping[str, Exception] | None = None, /, **words: Any) -> dict[str, Any]:
        """A call of the library, in this bucket. Raises FileSystemError, and what codes of answers mean by `meanings`."""
        with self._telling(meanings or {}):
            return getattr(self._client, name)(**{"Bucket": self.bucket, **words})  # type: ignore[no-any-return]


class Upload:
    """An upload that has begun: parts are put into it, and `complete` gives the object its name."""

    def __init__(self, client: Client, key: str, identity: str, *, has_crc: bool) -> None:
        self._client, self._has_crc, self.identity, self.key = client, has_crc, identity, key
        self._words = {"Key": key, "UploadId": identity}

    def send(self, number: int, data: bytes | bytearray) -> Sent:
        """Put bytes as a part; the store compares them with their MD5."""
        words: dict[str, Any] = {"ContentMD5": _md5(data)}
        if self._has_crc:
            words["ChecksumCRC32"] = _base64(zlib.crc32(data).to_bytes(4, "big"))
        put = self._client.call("upload_part", PartNumber=number, Body=data, **self._words, **words)
        return Sent(number, len(data), put["ETag"])

    def copy(self, number: int, source: Address, tag: str, start: int, size: int) -> Sent:
        """Let the store put `size` bytes of another object, the version `tag`, as a part. Raises NoCopies where it does not."""
        words = {"CopySource": {"Bucket": source.home, "Key": source.name}, "CopySourceIfMatch": tag}
        words |= {"CopySourceRange": f"bytes={start}-{start + size - 1}"}
        changed = Location(source.url).system(CHANGED)
        meanings: dict[str, Exception] = {**dict.fromkeys(_NO_COPIES, NoCopies()), "PreconditionFailed": changed, "412": changed}
        copied = self._client.call("upload_part_copy", meanings, PartNumber=number, **self._words, **words)
        if not (found := copied.get("CopyPartResult", {}).get("ETag")):
            raise NoCopies  # rclone answers 200, and nothing is copied
        return Sent(number, size, '"{}"'.format(found.strip('"')))  # Ceph gives copies none of the quotes that it lists

    def listed(self) -> list[Sent]:
        """The parts that the store has."""
        found, more = list[Sent](), dict[str, Any]()
        while True:
            page = self._client.call("list_parts", **self._words, **more)
            found += (Sent(part["PartNumber"], part["Size"], part["ETag"]) for part in page.get("Parts", ()))
            if not page.get("IsTruncated"):
                return found
            more = {"PartNumberMarker": page["NextPartNumberMarker"]}

    def complete(self, parts: list[Sent], condition: Mapping[str, str], crc: int | None = None) -> dict[str, Any]:
        """Give the object its name. Raises OutputExistsError where the condition does not hold."""
        words: dict[str, Any] = {"MultipartUpload": {"Parts": [{"PartNumber": p.number, "ETag": p.tag} for p in parts]}}
        if crc is not None and self._has_crc:
            words |= {"ChecksumCRC32": _base64(crc.to_bytes(4, "big")), "ChecksumType": "FULL_OBJECT"}
        what = "the store finds another CRC-32 in what it copied than the source states: a weight there is damaged"
        damaged = dict.fromkeys(("BadDigest", "XAmzContentChecksumMismatch"), self._client.location.damaged(what))
        meanings: dict[str, Exception] = {**damaged, **dict.fromkeys(_TAKEN, taken(self._client.location))}
        return self._client.call("complete_multipart_upload", meanings, **self._words, **words, **condition)

    def abort(self) -> None:
        """Remove what was uploaded. Raises FileSystemError, whose message names the upload, where the store does not."""
        try:
            with contextlib.suppress(_NothingThere):
                meanings = dict.fromkeys(("NoSuchUpload", "404"), _NothingThere())
                self._client.call("abort_multipart_upload", meanings, **self._words)
        except Exception as error:
            words = shlex.join(["--bucket", self._client.bucket, "--key", self.key, "--upload-id", self.identity])
            what = f"its unfinished upload {self.identity} could not be removed: {getattr(error, 'what', error)}"
            raise self._client.location.system(what, hint=f"aws s3api abort-multipart-upload {words}") from error


def taken(location: Location) -> OutputExistsError:
    """The error for a name that another made, or changed, since it was looked at."""
    what = "was made or changed by another meanwhile, and is not replaced"
    return OutputExistsError(what, file=location.file, hint="--force, or -o names another output")


def _md5(data: bytes | bytearray) -> str:
    return _base64(hashlib.md5(data, usedforsecurity=False).digest())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
