/** Debian's MariaDB server with data of its own, on a Unix socket and on loopback. */

import * as os from "node:os";
import { startOnFreePort } from "./free_port.ts";

/** Whether `mariadbd` has what {@linkcode startMariaDb} calls: ask `requires(...MARIADB_TOOLS)`. */
export const MARIADB_TOOLS = [
  "mariadbd",
  "mariadb-install-db",
  "my_print_defaults",
] as const;

/** The user that tests log in as, and its password. */
export const DB_USER = "conv";
export const DB_PASSWORD = "s3cr%t:p@ss";

/** A server that runs until it is disposed of, with an empty database `conversions`. */
export interface MariaDb extends AsyncDisposable {
  readonly socket: string;
  readonly port: number;
  /** For `--dedup-db`, without the password. */
  readonly url: string;
  /** Of the server's process, for tests that stop it. */
  readonly pid: number;
  /** Runs statements as the server's root. */
  sql(text: string): Promise<void>;
}

/**
 * Starts a server in `dir`, which the caller removes. Works for root and for others.
 *
 * @param extra Further arguments of `mariadbd`.
 */
export async function startMariaDb(
  dir: string,
  extra: readonly string[] = [],
): Promise<MariaDb> {
  const user = os.userInfo().username;
  const data = `${dir}/data`;
  const socket = `${dir}/db.sock`;
  // A server that starts removes temporary tables from there, also those of others.
  const temporary = `${dir}/tmp`;
  await Deno.mkdir(temporary);
  await run("mariadb-install-db", [
    "--no-defaults",
    `--datadir=${data}`,
    `--tmpdir=${temporary}`,
    "--auth-root-authentication-method=normal",
    "--skip-test-db",
    `--user=${user}`,
  ]);
  const init = `${dir}/init.sql`;
  await Deno.writeTextFile(
    init,
    [
      "CREATE DATABASE conversions;",
      // Whoever connects through the socket is localhost, over TCP an address.
      ...["localhost", "127.0.0.1"].map((host) =>
        `GRANT ALL ON conversions.* TO '${DB_USER}'@'${host}' IDENTIFIED BY '${DB_PASSWORD}';`
      ),
      "",
    ].join("\n"),
  );
  const start = (port: number) =>
    new Deno.Command("mariadbd", {
      args: [
        "--no-defaults",
        `--datadir=${data}`,
        `--tmpdir=${temporary}`,
        `--socket=${socket}`,
        "--bind-address=127.0.0.1",
        `--port=${port}`,
        `--user=${user}`,
        `--pid-file=${dir}/db.pid`,
        `--log-error=${dir}/db.log`,
        `--init-file=${init}`,
        "--skip-name-resolve",
        "--innodb-buffer-pool-size=8M",
        ...extra,
      ],
      env: { PATH: searchPath() },
      stdin: "null",
      stdout: "null",
      stderr: "null",
    }).spawn();
  // The init file is through when the server listens.
  const { child, port } = await startOnFreePort(
    (port) => Promise.resolve(start(port)),
    `${dir}/db.log`,
  );
  const stop = async () => {
    try {
      child.kill("SIGCONT");
      child.kill("SIGKILL");
    } catch {
      // It has ended already.
    }
    await child.status;
  };
  return {
    socket,
    port,
    url: `mysql://${DB_USER}@127.0.0.1:${port}/conversions`,
    pid: child.pid,
    sql: async (text) => {
      const { createConnection } = await import("mysql2/promise");
      const root = await createConnection({
        socketPath: socket,
        user: "root",
        database: "conversions",
        multipleStatements: true,
      });
      try {
        await root.query(text);
      } finally {
        await root.end();
      }
    },
    [Symbol.asyncDispose]: stop,
  };
}

function searchPath(): string {
  return `${Deno.env.get("PATH") ?? ""}:/usr/sbin:/sbin`;
}

async function run(program: string, args: string[]): Promise<void> {
  const { code, stderr } = await new Deno.Command(program, {
    args,
    env: { PATH: searchPath() },
    stdin: "null",
    stdout: "null",
  }).output();
  if (code !== 0) {
    throw new Error(`${program}: ${new TextDecoder().decode(stderr)}`);
  }
}
