import { deepEqual, equal, throws } from "node:assert/strict";
import {
  apiHost,
  formatReference,
  parseReference,
  referenceTarget,
  withTarget,
} from "../../lib/registry/mod.ts";

const D = `sha256:${"0123456789abcdef".repeat(4)}`;

const GOOD: [text: string, formatted: string][] = [
  ["alpine", "docker.io/library/alpine:latest"],
  ["alpine:3.20", "docker.io/library/alpine:3.20"],
  ["user/app", "docker.io/user/app:latest"],
  ["docker.io/alpine", "docker.io/library/alpine:latest"],
  ["index.docker.io/alpine", "docker.io/library/alpine:latest"],
  ["registry-1.docker.io/a/b", "docker.io/a/b:latest"],
  ["docker://alpine", "docker.io/library/alpine:latest"],
  ["docker://quay.io/a/b:c", "quay.io/a/b:c"],
  ["localhost/app", "localhost/app:latest"],
  ["localhost:5000/app:v1", "localhost:5000/app:v1"],
  ["Registry.Example/app", "registry.example/app:latest"],
  ["MYHOST/app", "MYHOST/app:latest"],
  ["127.0.0.1:5000/a/b/c:1", "127.0.0.1:5000/a/b/c:1"],
  ["[::1]:5000/app:v1", "[::1]:5000/app:v1"],
  ["[2001:db8::1]/app", "[2001:db8::1]/app:latest"],
  [`alpine@${D}`, `docker.io/library/alpine@${D}`],
  [`ghcr.io/a/b:tag@${D}`, `ghcr.io/a/b:tag@${D}`],
  ["ghcr.io/a__b/c-d.e_f:_T.1-x", "ghcr.io/a__b/c-d.e_f:_T.1-x"],
  [`h.io/a:${"t".repeat(128)}`, `h.io/a:${"t".repeat(128)}`],
  ["oci:/dir", "oci:/dir"],
  ["oci:dir:tag", "oci:dir:tag"],
  ["oci:dir:docker.io/library/alpine:3", "oci:dir:docker.io/library/alpine:3"],
  [`oci:dir@${D}`, `oci:dir@${D}`],
  [`oci:dir:v1@${D}`, `oci:dir:v1@${D}`],
  ["oci-archive:/x/y.tar:v1", "oci-archive:/x/y.tar:v1"],
  ["oci:user@host/dir:v1", "oci:user@host/dir:v1"],
  ["dir:5000/app:v1", "dir:5000/app:v1"],
  ["docker://dir:v1", "docker.io/library/dir:v1"],
];

Deno.test("parseReference() knows Docker's short forms and all transports", () => {
  for (const [text, formatted] of GOOD) {
    const reference = parseReference(text);
    equal(formatReference(reference), formatted, text);
    deepEqual(parseReference(formatted), reference, text);
  }
});

const BAD: [text: string, message: RegExp][] = [
  ["", /is empty/],
  ["docker://", /is empty/],
  ["Alpine", /lower case/],
  ["ghcr.io/App", /lower case/],
  ["a//b", /cannot be a repository name/],
  ["ghcr.io/", /missing/],
  ["ghcr.io/a_-b", /cannot be a repository name/],
  ["alpine:", /cannot be a tag/],
  ["alpine:-x", /cannot be a tag/],
  [`h.io/a:${"t".repeat(129)}`, /cannot be a tag/],
  ["alpine@sha256:abc", /Bad digest/],
  ["alpine@", /Bad digest/],
  [`alpine@${D.toUpperCase().replace("SHA256", "sha256")}`, /Bad digest/],
  ["https://ghcr.io/a", /leave out "https:\/\/"/],
  ["-bad.io/a", /cannot be a registry host/],
  ["[::1/a", /cannot be a registry host/],
  ["[1.2.3.4]:80/a", /not an IPv6/],
  ["host:99999/a", /out of range/],
  ["host:0/a", /out of range/],
  ["0".repeat(64), /ambiguous/],
  [`h.io/${"a".repeat(256)}`, /longer than 255/],
  ["alpine\n", /control characters/],
  ["al pine", /cannot be a repository name/],
  ["x".repeat(5000), /at most 4096/],
  ["docker-archive:app.tar", /"docker-archive:" is not read; .* skopeo copy/],
  ["docker-archive:/x/app.tar:app:v1", /"docker-archive:" is not read/],
  ["docker-daemon:app:v1", /"docker-daemon:" is not read/],
  ["containers-storage:app", /"containers-storage:" is not read/],
  ["dir:/x/app", /"dir:" is not read/],
  ["dir:app", /"dir:" is not read/],
  ["oci:", /path is missing/],
  ["oci::tag", /path is missing/],
  ["oci:dir:bad tag", /cannot be a tag/],
];

Deno.test("parseReference() says what is wrong", () => {
  for (const [text, message] of BAD) {
    throws(() => parseReference(text), { name: "UsageError", message }, text);
  }
});

Deno.test("parseReference() refuses other digest algorithms by name", () => {
  throws(() => parseReference(`alpine@sha512:${"a".repeat(128)}`), {
    name: "UnsupportedError",
    message: /"sha512" is not supported/,
  });
});

Deno.test("referenceTarget() prefers the digest; withTarget() replaces both", () => {
  equal(referenceTarget(parseReference(`a:t@${D}`)), D);
  equal(referenceTarget(parseReference("a:t")), "t");
  equal(referenceTarget(parseReference("oci:d")), "");
  const changed = withTarget(parseReference(`a:t@${D}`), { tag: "t-obd" });
  equal(formatReference(changed), "docker.io/library/a:t-obd");
  equal(apiHost("docker.io"), "registry-1.docker.io");
  equal(apiHost("ghcr.io"), "ghcr.io");
});
