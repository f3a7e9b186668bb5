/** parseDatabase(): what users may say, and what they are told. */

import assert from "node:assert/strict";
import { parseDatabase } from "../../lib/image/dedup/settings.ts";
import { UsageError } from "../../lib/io/mod.ts";

const parse = (
  text: string,
  env: Record<string, string> = {},
  uid = 1000,
  mayHavePassword = false,
) => parseDatabase(text, { env: (name) => env[name], uid, mayHavePassword });

Deno.test("parseDatabase() knows where SQLite's file is by itself", () => {
  const path = (env: Record<string, string>, uid: number) => {
    const parsed = parse("sqlite", env, uid);
    return parsed.kind === "sqlite" ? parsed.path : parsed.kind;
  };
  assert.equal(path({}, 0), "/var/lib/obd/conversions.db");
  assert.equal(path({ OBD_CACHE_DIR: "/c" }, 0), "/c/conversions.db");
  assert.equal(
    path({ HOME: "/home/u" }, 1000),
    "/home/u/.local/state/obd/conversions.db",
  );
  assert.equal(
    path({ HOME: "/home/u", XDG_STATE_HOME: "/s" }, 1000),
    "/s/obd/conversions.db",
  );
  assert.equal(path({}, 1000), "none");
  assert.deepEqual(parse("none"), { kind: "none" });
  assert.deepEqual(parse("sqlite:rel.db"), { kind: "sqlite", path: "rel.db" });
});

Deno.test("parseDatabase() takes a MySQL URL apart", () => {
  const mysql = (text: string, env = {}) => {
    const parsed = parse(text, env, 1000, true);
    assert.ok(parsed.kind === "mysql");
    const { password, ...rest } = parsed.mysql;
    return { ...rest, password: password!() };
  };
  const plain = { host: "db.example", port: 3306, user: "u", database: "d" };
  const is = (text: string, want: object, env = {}) => {
    const { socket, caFile, ...rest } = mysql(text, env);
    assert.deepEqual({
      ...rest,
      ...(socket === undefined ? {} : { socket }),
      ...(caFile === undefined ? {} : { caFile }),
    }, { tls: false, password: "", ...want });
  };
  is("mysql://u@db.example/d", plain);
  is("mariadb://u@db.example:80/d", { ...plain, port: 80 });
  is("mysql://u:p%40x@db.example:3307/d", {
    ...plain,
    port: 3307,
    password: "p@x",
  });
  is("mysql://u@[::1]/d", { ...plain, host: "::1" });
  is("mysql://u@localhost/d?socket=/run/db.sock", {
    ...plain,
    host: "localhost",
    socket: "/run/db.sock",
  });
  is("mysql://u@db.example/d?tls=true", { ...plain, tls: true });
  is("mysql://u@db.example/d?tls-ca=/ca.pem", {
    ...plain,
    tls: true,
    caFile: "/ca.pem",
  });
  is("mysql://u@db.example/d", { ...plain, password: "e" }, {
    OBD_DEDUP_DB_PASSWORD: "e",
  });
});

Deno.test("parseDatabase() says what is wrong, and never a password", () => {
  const cases: [string, RegExp][] = [
    ["", /want none, sqlite/],
    ["postgres://u@h/d", /want none, sqlite/],
    ["sqlite:", /names no file/],
    ["mysql://u:hunter2@h/d", /does not belong on a command line/],
    ["mysql://h/d", /names no user/],
    ["mysql://u@h", /names no database/],
    ["mysql://u@h/a/b", /names no database/],
    ["mysql://u@h:99999/d", /no URL/],
    ["mysql://u@h/d?tls=yes", /true or false/],
    ["mysql://u@10.0.0.1/d?tls=true", /must have a name/],
    ["mysql://u@[::1]/d?tls-ca=/ca.pem", /must have a name/],
    ["mysql://u@h/d?ssl=1", /no parameter "ssl"/],
    ["mysql://u@h/%zz", /stands for nothing/],
  ];
  for (const [text, problem] of cases) {
    assert.throws(() => parse(text), (error) => {
      assert.ok(error instanceof UsageError, text);
      assert.match(error.message, problem);
      assert.ok(!error.message.includes("hunter2"));
      return true;
    });
  }
});
