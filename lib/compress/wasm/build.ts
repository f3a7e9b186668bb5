/**
 * Compiles kernels.as to kernels.wasm: `deno run -A lib/compress/wasm/build.ts`.
 *
 * With `--check` it only compares, and exits with 1 when the committed file is
 * not what the source gives. The compiler version is exact so that the output
 * is the same on every machine.
 */

const ASC = "npm:assemblyscript@0.28.9/asc";
const here = new URL(".", import.meta.url).pathname;
const target = `${here}kernels.wasm`;

const dir = await Deno.makeTempDir();
try {
  await Deno.copyFile(`${here}kernels.as`, `${dir}/kernels.ts`);
  const { success } = await new Deno.Command(Deno.execPath(), {
    cwd: dir,
    args: [
      "run",
      "-A",
      "--no-config",
      ASC,
      "kernels.ts",
      "--outFile=kernels.wasm",
      "-O3",
      "--runtime=stub",
      "--enable=simd",
      "--noAssert",
      "--initialMemory=4",
    ],
    stdout: "inherit",
    stderr: "inherit",
  }).output();
  if (!success) Deno.exit(1);
  const built = await Deno.readFile(`${dir}/kernels.wasm`);
  if (Deno.args.includes("--check")) {
    const committed = await Deno.readFile(target);
    if (Uint8Array.from(built).toHex() !== committed.toHex()) Deno.exit(1);
  } else {
    await Deno.writeFile(target, built);
  }
} finally {
  await Deno.remove(dir, { recursive: true });
}
