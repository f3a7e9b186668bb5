/**
 * The command table: names, arguments and options of every command. The code
 * behind a command is loaded when it runs, so that `obd --version` loads
 * nothing.
 */

import {
  Argument,
  Command,
  CommanderError,
  InvalidArgumentError,
  Option,
} from "commander";
import { type CommonOptions, type Context, runWithContext } from "./context.ts";
import { versionLine } from "./version.ts";

/** Largest device: ext4 with 32-bit block numbers ends just below 16 TiB. */
const VSIZE_MAX_GIB = 16_383;
/** What overlaybd's `gzip.meta` may have, and what is still decoded at once. */
const SPAN_SIZE_MIN_KIB = 64;
const SPAN_SIZE_MAX_KIB = 65_536;
const JOBS_MAX = 256;
const FORMATS = ["turbo", "overlaybd"];
/** A week; the runtime's timers go to 24 days. */
const TIMEOUT_MAX_SECONDS = 7 * 24 * 3600;

/** What a command's module exports. */
interface CommandModule {
  run(
    context: Context,
    args: string[],
    options: Record<string, unknown>,
  ): Promise<number | void>;
}

/**
 * Runs the command line.
 *
 * @param argv Arguments after the program's name.
 * @returns The exit code.
 */
export async function main(argv: string[]): Promise<number> {
  let exitCode = 0;
  const program = createProgram((code) => exitCode = code);
  try {
    if (argv.length === 0) {
      program.outputHelp({ error: true });
      return 2;
    }
    await program.parseAsync(argv, { from: "user" });
    return exitCode;
  } catch (error) {
    if (error instanceof CommanderError) {
      return error.exitCode === 0 ? 0 : 2;
    }
    throw error;
  }
}

/** All commands, as commander holds them. */
export function createProgram(setExit: (code: number) => void): Command {
  const program = new Command("obd")
    .description(
      "Start any container before its image is there: lazily served OCI images over NBD",
    )
    .version(versionLine(), "-V, --version", "print the version and exit")
    .helpOption("-h, --help", "print help and exit")
    .helpCommand("help [command]", "print help for a command")
    .showSuggestionAfterError()
    .configureHelp({
      showGlobalOptions: true,
      // Without "[options]", which all have: the list fits its columns.
      subcommandTerm: (command) =>
        [command.name(), ...command.registeredArguments.map(argumentTerm)]
          .join(" "),
    })
    .exitOverride();

  const add = (
    usage: string,
    summary: string,
    load: () => Promise<CommandModule>,
  ): Command => {
    const command = program.command(usage)
      .summary(summary).description(summary)
      .allowExcessArguments(false);
    addCommonOptions(command);
    command.action(async (...input: unknown[]) => {
      const options = command.opts() as CommonOptions & Record<string, unknown>;
      const args = input.slice(0, -2).flat().filter((a) => a !== undefined);
      // A daemon tells what it does; elsewhere stderr is for what went wrong.
      const level = command.name() === "serve" ? "info" : "warn";
      const code = await runWithContext(options, level, async (context) => {
        const module = await load();
        return module.run(context, args as string[], options);
      });
      setExit(code);
    });
    return command;
  };

  addBuild(add);
  addServe(add);
  addMountCommands(add);
  addReadCommands(add);
  addTrace(add);
  addBench(add);

  program.command("completion")
    .summary("print a completion script for bash, zsh or fish")
    .description(
      'Print a completion script, e.g. for bash: eval "$(obd completion bash)"',
    )
    .addArgument(
      new Argument("<shell>", "the shell").choices(["bash", "zsh", "fish"]),
    )
    .allowExcessArguments(false)
    .action(async (shell: string) => {
      const { completionScript } = await import("./completion.ts");
      console.log(completionScript(program, shell)!);
    });
  return program;
}

/** `<image>`, or `[path]` where it may be missing. */
function argumentTerm(argument: Argument): string {
  const name = argument.name() + (argument.variadic ? "..." : "");
  return argument.required ? `<${name}>` : `[${name}]`;
}

type Add = (
  usage: string,
  summary: string,
  load: () => Promise<CommandModule>,
) => Command;

function addCommonOptions(command: Command): void {
  command
    .option("--json", "print one JSON object on stdout")
    .option("-q, --quiet", "print nothing but errors")
    .option("--debug", "log more, and print stack traces")
    .addOption(
      new Option("--log-format <format>", "format of log lines on stderr")
        .choices(["text", "json"]).default("text"),
    )
    .option(
      "--plain-http",
      "speak plain HTTP to registries (implied for loopback)",
    )
    .option("--ca-file <file>", "also trust the CA certificates in this file")
    .option("--tls-skip-verify", "do not verify registry certificates")
    .option("--authfile <file>", "registry credentials (Docker format)");
}

function addBuild(add: Add): void {
  const build = add(
    "build <source> [dest]",
    "read an image once and write its small meta image",
    () => import("./build.ts"),
  );
  nativeStorage(build)
    .addOption(
      new Option(
        "--vsize <GiB>",
        `virtual size of the device, ${VSIZE_MAX_GIB} at most`,
      )
        .argParser(integerTo(VSIZE_MAX_GIB)).default(64),
    )
    .addOption(
      new Option(
        "--platform <os/arch[/variant]>",
        "platform of an index to build (default: this machine's)",
      )
        .conflicts("allPlatforms"),
    )
    .option("--all-platforms", "build every platform of an index")
    .addOption(
      new Option(
        "--base <image>",
        "go on from this converted image of the lower layers, made by any tool",
      ).conflicts("flatten"),
    )
    .option("--flatten", "put all metadata into the top layer")
    .addOption(
      new Option(
        "--span-size <KiB>",
        `longest piece of a layer that is decoded for a read, ${SPAN_SIZE_MIN_KIB} to ${SPAN_SIZE_MAX_KIB} (default: 1 to 2 MiB as suits each gzip layer, longer where it compresses very well)`,
      ).argParser(integerTo(SPAN_SIZE_MAX_KIB, SPAN_SIZE_MIN_KIB)),
    )
    .option("--tag <name>", "tag of the meta image (default: TAG-obd)")
    .option("--no-tag", "push by digest only")
    .option("--no-referrer", "do not maintain the referrers fallback tag")
    .addOption(jobs())
    .addOption(format())
    .addOption(
      new Option(
        "--compat <reader>",
        "make layers native that this reader cannot read as TurboOCI",
      ).choices(["overlaybd"]),
    )
    .option(
      "--convert-unseekable",
      "make layers native that can only be decoded from their start",
    )
    .option("--oci", "OCI media types for native images (default)")
    .option("--no-oci", "Docker media types for native images")
    .option(
      "--dedup-db <where>",
      "database of conversions to take layers from: none, sqlite[:FILE] or mysql://USER@HOST/DATABASE (default: $OBD_DEDUP_DB, else sqlite)",
    )
    .option("--dry-run", "build, print what would be pushed, push nothing");
  refuseTogether(build, "tag", "no-tag");
}

/** For an option and its negation, which are one to commander: the last would win. */
function refuseTogether(command: Command, first: string, second: string): void {
  const seen = new Set<string>();
  for (const name of [first, second]) {
    command.on(`option:${name}`, () => {
      seen.add(name);
      if (seen.size < 2) return;
      command.error(
        `error: option '--${first}' cannot be used with option '--${second}'`,
      );
    });
  }
}

/** How native layers are stored. */
function nativeStorage(command: Command): Command {
  return command
    .addOption(
      new Option("--algorithm <name>", "compression of native layers")
        .choices(["lz4", "zstd"]).default("lz4"),
    )
    .addOption(
      new Option("--block-size <KiB>", "compressed blocks of native layers")
        .choices(["4", "8", "16", "32"]).default("4"),
    );
}

/** Both formats are its choices one by one, which completion offers, and as a list. */
function format(): Option {
  return new Option(
    "--format <format>",
    "a small meta image (turbo) or native layers (overlaybd); for both repeat it, or separate by a comma",
  ).choices(FORMATS).argParser(buildFormats).default(["turbo"], "turbo");
}

function jobs(): Option {
  return new Option("--jobs <n>", `threads to use, ${JOBS_MAX} at most`)
    .argParser(
      integerTo(JOBS_MAX),
    )
    .default(navigator.hardwareConcurrency, "number of cores");
}

function addServe(add: Add): void {
  add(
    "serve",
    "serve images as NBD block devices",
    () => import("./serve.ts"),
  )
    .usage("--config <file> [options]")
    .requiredOption(
      "--config <file>",
      "configuration file or directory (repeatable)",
      collect,
    )
    .option("--check", "validate the configuration and exit");
}

function addMountCommands(add: Add): void {
  const api = (command: Command) =>
    command.option(
      "--api <address>",
      "status API of a running serve (default: api.sock in /run/obd or $OBD_RUN_DIR, if it answers)",
    );
  prefetch(api(
    add(
      "mount <image> <dir>",
      "mount an image's merged layers read-only",
      () => import("./mount.ts"),
    ),
  )).option("--platform <os/arch[/variant]>", "platform of an index");
  add("umount <dir>", "undo a mount", () => import("./umount.ts"))
    .addOption(unusedApi());
  prefetch(api(
    add(
      "attach <image>",
      "attach an image as a block device",
      () => import("./attach.ts"),
    ),
  )).option("--device <path>", "the device to use, e.g. /dev/nbd0")
    .option("--platform <os/arch[/variant]>", "platform of an index");
  add(
    "detach <target>",
    "undo an attach (device, image or id)",
    () => import("./detach.ts"),
  ).addOption(unusedApi());
  add(
    "mounts",
    "list mounts and attached devices",
    () => import("./mounts.ts"),
  );
  add(
    "reconnect [target...]",
    "connect devices again after a restart of their serve",
    () => import("./reconnect.ts"),
  ).option("--api <address>", "only devices of the serve with this status API")
    .addHelpText(
      "after",
      `
A target is a directory, a device, an id or an image; without any, all devices.
Devices of the kernel's NBD driver wait for it; a serve that a mount started
for itself is started again.`,
    );
}

/** Scripts for 0.1 may give it. */
function unusedApi(): Option {
  return new Option(
    "--api <address>",
    "of no effect: what is mounted or attached knows its serve",
  );
}

/** What is fetched ahead of any reader. */
function prefetch(command: Command): Command {
  refuseTogether(command, "trace", "no-trace");
  return command
    .option(
      "--trace <file>",
      "fetch ahead what this trace says (default: traces found beside the image)",
    )
    .option("--no-trace", "do not look for traces beside the image")
    .option(
      "--prefetch-files <file>",
      "fetch ahead the files of this list (a path a line)",
    )
    .option(
      "--prefetch-rate <rate>",
      "fetch ahead at most so fast, e.g. 20MB/s (default: no bound)",
    );
}

function addReadCommands(add: Add): void {
  const platform = (command: Command) =>
    command.option("--platform <os/arch[/variant]>", "platform of an index");
  platform(
    add(
      "dump <image> <out>",
      'write the whole merged device as a sparse file ("-" = stdout)',
      () => import("./dump.ts"),
    ),
  );
  platform(
    add(
      "ls <image> [path]",
      "list files without mounting",
      () => import("./ls.ts"),
    ),
  ).option("-l, --long", "mode, owner, size and time too")
    .option("-R, --recursive", "directories within directories too");
  platform(
    add(
      "cat <image> <path>",
      "print a file's content without mounting",
      () => import("./cat.ts"),
    ),
  );
  platform(
    add(
      "verify <image>",
      "read all of an image and list what is wrong with it",
      () => import("./verify.ts"),
    ),
  );
  nativeStorage(platform(
    add(
      "merge <image> <out>",
      "flatten an image's layers into one overlaybd layer file",
      () => import("./merge.ts"),
    ),
  )).addOption(jobs());
  platform(
    add(
      "inspect <image|file>",
      "show what an image, a layout or a layer file is, and what is wrong with it",
      () => import("./inspect.ts"),
    ),
  );
  add(
    "report",
    "collect versions, configuration, status and log lines",
    () => import("./report.ts"),
  )
    .option("--zip <file>", "write a zip file instead of printing")
    .option(
      "--config <file>",
      "configuration file or directory to include, without secrets (repeatable)",
      collect,
    )
    .option(
      "--api <address>",
      "status API of a running serve (default: api.sock in /run/obd or $OBD_RUN_DIR)",
    );
}

function addTrace(add: Add): void {
  const trace = add(
    "trace <action> <target> [other]",
    "record what an export reads, show a trace, or push it with its image",
    () => import("./trace.ts"),
  );
  // For completion; the command itself says what it does not know.
  trace.registeredArguments[0]!.argChoices = ["record", "show", "push"];
  trace
    .usage(
      `record <export|dir> --output <file> [options]
       obd trace show <file> [image] [options]
       obd trace push <image> <file> [options]`,
    )
    .option("--output <file>", "record: where to write the trace")
    .option(
      "--files <file>",
      "record: also write the list of the files that were read",
    )
    .option(
      "--seconds <n>",
      "record: for so long (default: until SIGINT)",
    )
    .option(
      "--api <address>",
      "record: status API of the serve that has the export (default: that of the mount at DIR, else api.sock in /run/obd or $OBD_RUN_DIR)",
    )
    .option(
      "--acceleration-layer <tag>",
      "push: as overlaybd's acceleration layer, an image of this tag",
    )
    .option("--platform <os/arch[/variant]>", "platform of an index");
}

function addBench(add: Add): void {
  add(
    "bench [image] [command...]",
    "measure the cold start of an image against plain OCI",
    () => import("./bench/command.ts"),
  )
    .option(
      "--workload <name>",
      "start this image of the source tree (repeatable)",
      collect,
    )
    .option(
      "--contenders <names>",
      "what to compare: oci, umoci, obd, obd-trace, obd-native, obd-warm",
      "oci,obd,obd-trace,obd-warm",
    )
    .option("--link <rate>", "speed of the link, e.g. 500mbit")
    .option("--rtt <ms>", "round trip to the registry", "0")
    .addOption(
      new Option("--runs <n>", "runs of each contender")
        .argParser(positiveInteger).default(3),
    )
    .option(
      "--steady <seconds>",
      "then ask the warm service for so long",
      "0",
    )
    .addOption(
      new Option("--timeout <seconds>", "for one run")
        .argParser(integerTo(TIMEOUT_MAX_SECONDS)).default(600),
    )
    .option(
      "--cache <dir>",
      "images, registry and caches between runs (default: /var/cache/obd-bench, or below ~/.cache)",
    )
    .option("--output <file>", "append results as JSON lines")
    .option("--html <file>", "write a report with charts, in one file")
    .option(
      "--from <files...>",
      "report results that --output or --json wrote, run nothing",
    )
    .option(
      "--compare <files...>",
      "compare two such results, run nothing",
    )
    .option(
      "--reduced",
      "without containers, mounts and root: replay what the command reads (default for other users)",
    )
    .option(
      "--reads <file>",
      "for --reduced: what to replay, a trace or a list of paths (default: what strace sees)",
    )
    .option("--ready-exit", "ready when the command exits with 0 (default)")
    .option(
      "--ready-http <port/path>",
      "ready when this answers 200 on loopback",
    )
    .option("--ready-log <text>", "ready when this is logged");
}

function collect(value: string, earlier: string[] = []): string[] {
  return [...earlier, value];
}

/** Names of formats, given at once or one by one; commander's default is no earlier value. */
function buildFormats(value: string, earlier: string[]): string[] {
  const names = value.split(",");
  for (const name of names) {
    if (!FORMATS.includes(name)) {
      throw new InvalidArgumentError("Expected turbo, overlaybd or both.");
    }
  }
  const given = givenFormats.has(earlier) ? earlier : [];
  const all = [...given, ...names];
  givenFormats.add(all);
  return all;
}

/** Lists that came from the command line, not from the default. */
const givenFormats = new WeakSet<string[]>();

function positiveInteger(text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value) || value < 1) {
    throw new InvalidArgumentError("Expected a positive whole number.");
  }
  return value;
}

/** Parses a whole number from 1 to `most`. */
function integerTo(most: number, least = 1): (text: string) => number {
  return (text) => {
    const value = positiveInteger(text);
    if (value < least) {
      throw new InvalidArgumentError(`Expected at least ${least}.`);
    }
    if (value <= most) return value;
    throw new InvalidArgumentError(`Expected at most ${most}.`);
  };
}
