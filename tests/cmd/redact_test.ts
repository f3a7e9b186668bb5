/** What is taken out of reports. */

import assert from "node:assert/strict";
import { isSecretKey, redactText, redactValue } from "../../cmd/redact.ts";

const SECRET = "hunter2secret";

Deno.test("secrets are known by their keys", () => {
  const secret = [
    "token",
    "auth",
    "password",
    "PASSWD",
    "identitytoken",
    "registryToken",
    "Authorization",
    "clientSecret",
    "apiKey",
    "api_key",
    "OBD_API_TOKEN",
    "DENO_AUTH_TOKENS",
    "api.token",
  ];
  const open = [
    "tokenFile",
    "authfile",
    "auths",
    "credentialFilePath",
    "credentialConfig",
    "author",
    "key",
    "client_key_path",
    "tokens.count",
    "OBD_RUN_DIR",
  ];
  for (const key of secret) assert.ok(isSecretKey(key), key);
  for (const key of open) assert.ok(!isSecretKey(key), key);
});

Deno.test("values: keys at any depth, objects whole, empty ones stay", () => {
  const got = redactValue({
    api: { token: SECRET, listen: "unix:/a.sock", tokenFile: "/t" },
    auths: { "r.example": { auth: SECRET, password: SECRET } },
    list: [{ secret: { deep: SECRET } }, `https://u:${SECRET}@r.example/v2/`],
    password: "",
    auth: null,
    count: 5,
  });
  assert.deepEqual(got, {
    api: { token: "[removed]", listen: "unix:/a.sock", tokenFile: "/t" },
    auths: { "r.example": { auth: "[removed]", password: "[removed]" } },
    list: [{ secret: "[removed]" }, "https://[removed]@r.example/v2/"],
    password: "",
    auth: null,
    count: 5,
  });
  let nested: unknown = SECRET;
  for (let i = 0; i < 100; i++) nested = { a: nested };
  assert.ok(!JSON.stringify(redactValue(nested)).includes(SECRET));
});

Deno.test("texts: URLs, headers, assignments", () => {
  const lines = [
    `GET https://user:${SECRET}@r.example/v2/ failed`,
    `GET https://${SECRET}@r.example/v2/ failed`,
    `redirected to https://cdn.example/b?X-Amz-Signature=${SECRET}&e=1 now`,
    `http://p.example?sig=${SECRET}`,
    `authorization: Bearer ${SECRET}`,
    `Authorization="Basic ${SECRET}="`,
    `Proxy-Authorization: Basic ${SECRET}`,
    `{"time":"t","token":"${SECRET}","level":"info"}`,
    `token=${SECRET} host=r.example`,
    `password: "${SECRET}"`,
    `identitytoken='${SECRET}'`,
    `http_proxy=http://u:${SECRET}@proxy.example:3128`,
  ];
  for (const line of lines) {
    const got = redactText(line);
    assert.ok(!got.includes(SECRET), got);
    assert.match(got, /\[removed\]/);
  }
  const kept = [
    "nbd+unix:///app?socket=/run/obd/nbd.sock",
    "image=r.example/app:1.2 source=sha256:abc ms=12",
    "user@host",
    "https://r.example/v2/app/blobs/sha256:abc",
    "tokenFile=/etc/obd/token",
    "read 5 tokens",
  ];
  for (const line of kept) assert.equal(redactText(line), line);
  assert.match(
    redactText(`"token":"${SECRET}","level":"info"`),
    /"level":"info"/,
  );
});

Deno.test("texts that are made to be slow are not", () => {
  const started = performance.now();
  for (
    const piece of ["a", "a.", "token", "http", "://", "=", '"', "Bearer "]
  ) {
    redactText(piece.repeat(100_000 / piece.length));
  }
  assert.ok(performance.now() - started < 3000);
});
