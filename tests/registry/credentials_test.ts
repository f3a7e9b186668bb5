import { deepEqual, equal, ok, rejects } from "node:assert/strict";
import { FormatError, type Logger } from "../../lib/io/mod.ts";
import {
  createCredentialSource,
  type CredentialOptions,
  type FoundCredentials,
} from "../../lib/registry/mod.ts";
import { runCredentialHelper } from "../../lib/registry/credential_helper.ts";
import { writeExecutable } from "../testutil/executable.ts";
import { denoDirectory } from "../testutil/obd_command.ts";
import { onlyCredentials, withTempDir } from "./helpers.ts";

const auth = (user: string) => ({ auth: btoa(`${user}:p-${user}`) });

function userOf(found: FoundCredentials | undefined): string | undefined {
  const c = found?.credentials;
  return c?.kind === "password" ? c.username : c?.token;
}

async function find(
  config: unknown,
  registry: string,
  repository: string,
  more: CredentialOptions = {},
): Promise<FoundCredentials | undefined> {
  let found: FoundCredentials | undefined;
  await withTempDir(async (dir) => {
    const authFile = `${dir}/auth.json`;
    await Deno.writeTextFile(authFile, JSON.stringify(config));
    const source = createCredentialSource(
      onlyCredentials({ authFile, ...more }),
    );
    found = await source.find(registry, repository);
  });
  return found;
}

Deno.test("a token that no header can hold is told, but not shown", async () => {
  for (const registrytoken of ["sec\nret", "secrét"]) {
    await rejects(
      find({ auths: { "h.io": { registrytoken } } }, "h.io", "a"),
      (e) => {
        ok(e instanceof FormatError, String(e));
        ok(/auths\.h\.io\.registrytoken has odd/.test(e.message), e.message);
        ok(!/sec/.test(e.message), e.message);
        return true;
      },
    );
  }
});

Deno.test("the longest key that fits wins", async () => {
  const auths = {
    "h.io": auth("host"),
    "h.io/a": auth("a"),
    "h.io/a/b": auth("ab"),
    "h.io/ax": auth("ax"),
    "H2.io:5000": auth("port"),
    "https://h3.io/v2/": auth("url"),
    "h4.io": auth("h4"),
    "h4.io/a/v2": auth("v2"),
  };
  const cases: [
    registry: string,
    repository: string,
    user: string | undefined,
  ][] = [
    ["h.io", "x", "host"],
    ["h.io", "a", "a"],
    ["h.io", "a/c", "a"],
    ["h.io", "a/b/c", "ab"],
    ["h.io", "ay/b", "host"],
    ["h2.io:5000", "x", "port"],
    ["h2.io", "x", undefined],
    ["h3.io", "x", "url"],
    ["h4.io", "a/b", "h4"],
    ["h4.io", "a/v2", "v2"],
    ["other.io", "x", undefined],
  ];
  for (const [registry, repository, user] of cases) {
    const found = await find({ auths }, registry, repository);
    equal(userOf(found), user, `${registry}/${repository}`);
  }
});

Deno.test("all names of Docker Hub are one", async () => {
  for (
    const key of [
      "https://index.docker.io/v1/",
      "index.docker.io",
      "docker.io",
      "registry-1.docker.io",
    ]
  ) {
    const found = await find(
      { auths: { [key]: auth("hub") } },
      "docker.io",
      "a/b",
    );
    equal(userOf(found), "hub", key);
  }
});

Deno.test("identitytoken, registrytoken, username with password, empty entries", async () => {
  const one = async (entry: unknown) =>
    (await find({ auths: { h: entry } }, "h", "r"))?.credentials;
  deepEqual(await one({ ...auth("u"), identitytoken: "T" }), {
    kind: "refresh",
    token: "T",
  });
  deepEqual(await one({ registrytoken: "R" }), { kind: "bearer", token: "R" });
  deepEqual(await one({ username: "u", password: "p" }), {
    kind: "password",
    username: "u",
    password: "p",
  });
  equal(await one({}), undefined);
});

Deno.test("sources come in their order; a later one is asked when the first has nothing", async () => {
  await withTempDir(async (dir) => {
    const files: Record<string, string> = {
      flag: `${dir}/flag.json`,
      registry: `${dir}/registry.json`,
      docker: `${dir}/dc/config.json`,
      runtime: `${dir}/run/containers/auth.json`,
      home: `${dir}/home/.docker/config.json`,
      overlaybd: `${dir}/cred.json`,
    };
    for (const [name, path] of Object.entries(files)) {
      await Deno.mkdir(path.replace(/[^/]*$/, ""), { recursive: true });
      await Deno.writeTextFile(
        path,
        JSON.stringify({
          auths: { h: auth(name), [`only-${name}`]: auth(name) },
        }),
      );
    }
    const source = createCredentialSource(onlyCredentials({
      authFile: files.flag!,
      overlaybdFile: files.overlaybd!,
    }, {
      REGISTRY_AUTH_FILE: files.registry!,
      DOCKER_CONFIG: `${dir}/dc`,
      XDG_RUNTIME_DIR: `${dir}/run`,
      HOME: `${dir}/home`,
    }));
    deepEqual(source.places, Object.values(files));
    for (const [name, path] of Object.entries(files)) {
      equal(userOf(await source.find("h", "r")), name);
      equal(userOf(await source.find(`only-${name}`, "r")), name);
      await Deno.writeTextFile(path, "{}");
    }
    equal(await source.find("h", "r"), undefined);
  });
});

Deno.test("without HOME, as in a service of systemd, the home is the user database's", async () => {
  const users = (await Deno.readTextFile("/etc/passwd")).split("\n");
  const user = users.map((line) => line.split(":"))
    .find(([, , uid]) => uid === String(Deno.uid()));
  const module = new URL("../../lib/registry/mod.ts", import.meta.url).href;
  // A process of its own: tests beside this one need their HOME.
  const { stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      "eval",
      `import { createCredentialSource } from ${JSON.stringify(module)};
       console.log(JSON.stringify(createCredentialSource().places));`,
    ],
    clearEnv: true,
    env: { DENO_DIR: denoDirectory() },
    cwd: new URL("../../", import.meta.url),
    stdin: "null",
  }).output();
  const said = new TextDecoder().decode(stdout);
  ok(said !== "", new TextDecoder().decode(stderr));
  const places: string[] = JSON.parse(said);
  equal(
    places.find((path) => path.endsWith("/.docker/config.json")),
    user && `${user[5]}/.docker/config.json`,
  );
});

Deno.test("broken files are errors that do not quote them", async () => {
  await withTempDir(async (dir) => {
    const authFile = `${dir}/auth.json`;
    const source = createCredentialSource(onlyCredentials({ authFile }));
    await rejects(source.find("h", "r"), { name: "UsageError" });
    const cases = [
      '{"auths":{"h":{"auth":"secret',
      "[]",
      '{"auths":[]}',
      '{"auths":{"h":"secret"}}',
      '{"auths":{"h":{"auth":"!secret!"}}}',
      `{"auths":{"h":{"auth":"${btoa("secretwithoutcolon")}"}}}`,
    ];
    for (const text of cases) {
      await Deno.writeTextFile(authFile, text);
      await rejects(source.find("h", "r"), (e) => {
        ok(e instanceof Error);
        equal(e.name, "FormatError", text);
        ok(!String(e.stack).includes("secret"), text);
        return true;
      });
    }
  });
});

/** Puts a `docker-credential-test` on the PATH. */
async function withHelper(
  script: string,
  work: (log: () => Promise<string>) => Promise<void>,
): Promise<void> {
  await withTempDir(async (dir) => {
    const path = `${dir}/docker-credential-test`;
    await writeExecutable(
      path,
      `#!/bin/sh\nread server\necho "$1 $server" >> ${dir}/log\n${script}\n`,
    );
    const before = Deno.env.get("PATH")!;
    Deno.env.set("PATH", `${dir}:${before}`);
    try {
      await work(() => Deno.readTextFile(`${dir}/log`));
    } finally {
      Deno.env.set("PATH", before);
    }
  });
}

Deno.test("credential helpers: per host and as the store, tokens, absence", async () => {
  await withHelper(
    `case $server in
      h.io) echo '{"ServerURL":"h.io","Username":"u","Secret":"s"}';;
      t.io) echo '{"Username":"<token>","Secret":"refresh"}';;
      *index.docker.io*) echo '{"Username":"hub","Secret":"s"}';;
      *) echo "credentials not found in native keychain"; exit 1;;
    esac`,
    async (log) => {
      const helpers = {
        credHelpers: { "h.io": "test" },
        auths: { "h.io": auth("no") },
      };
      const found = await find(helpers, "h.io", "a/b");
      equal(userOf(found), "u");
      equal(found?.source, "docker-credential-test");
      const store = { credsStore: "test", auths: { "t.io": {} } };
      deepEqual((await find(store, "t.io", "a"))?.credentials, {
        kind: "refresh",
        token: "refresh",
      });
      equal(userOf(await find(store, "docker.io", "library/a")), "hub");
      equal(await find(store, "none.io", "a"), undefined);
      deepEqual((await log()).trim().split("\n"), [
        "get h.io",
        "get t.io",
        "get https://index.docker.io/v1/",
        "get none.io",
      ]);
    },
  );
});

Deno.test("a helper that fails, floods, is missing or hangs is passed over with a warning", async () => {
  const warnings: string[] = [];
  const logger: Logger = {
    debug() {},
    info() {},
    error() {},
    warn: (_, fields) => void warnings.push(String(fields?.error)),
  };
  const config = { credHelpers: { h: "test" } };
  const scripts: [string, RegExp][] = [
    ["echo secret; exit 3", /failed with exit code 3/],
    ["echo secret", /no valid JSON/],
    ["echo '{\"Username\":1}'", /no Username and Secret/],
    ["head -c 200000 /dev/zero", /more than 65536 bytes/],
    ["sleep 3", /did not finish in 150 ms/],
    ["sleep 3 & sleep 3", /did not finish in 150 ms/],
  ];
  for (const [script, want] of scripts) {
    await withHelper(script, async () => {
      const more = { logger, helperTimeoutMs: 150 };
      if (!script.startsWith("sleep")) more.helperTimeoutMs = 5000;
      equal(await find(config, "h", "r", more), undefined);
    });
    const warning = warnings.pop() ?? "";
    ok(want.test(warning) && !warning.includes("secret"), warning);
  }
  equal(
    await find({ credsStore: "not-there" }, "h", "r", { logger }),
    undefined,
  );
  ok(/not installed/.test(warnings.pop()!));
  await rejects(runCredentialHelper("../../bin/sh", "h", 100), {
    message: /cannot be a credential helper/,
  });
});
