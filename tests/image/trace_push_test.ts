/** Traces beside their images: pushed, found, chosen, refused. */

import assert from "node:assert/strict";
import {
  DEVICE_LAYER,
  type ImageEnvironment,
  openEnvironment,
  openImage,
  publishImage,
  pushAcceleration,
  pushTrace,
  type TraceRecord,
} from "../../lib/image/mod.ts";
import { toDevice, toLayers } from "../../lib/image/traced_files.ts";
import { loadLibc, utf8 } from "../../lib/io/mod.ts";
import {
  encodeTrace,
  readAccelerationLayer,
  writeAccelerationLayer,
} from "../../lib/layers/mod.ts";
import { parseReference, sha256Digest } from "../../lib/registry/mod.ts";
import { file, makeImage, putImage } from "../testutil/oci_image.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { requires } from "../testutil/requires.ts";
import { seededBytes } from "../testutil/source_contract.ts";
import { RecordingLogger } from "../testutil/test_source.ts";

loadLibc();

const TYPE = "application/vnd.obd.trace.v1";
const device = (offset: number, length = 4096): TraceRecord => ({
  layer: DEVICE_LAYER,
  offset,
  length,
});

interface Setup extends AsyncDisposable {
  server: RegistryServer;
  environment: ImageEnvironment;
  logger: RecordingLogger;
  reference: string;
}

async function setup(
  options: { referrersApi?: boolean; format?: "turbo" | "overlaybd" } = {},
): Promise<Setup> {
  await using stack = new AsyncDisposableStack();
  const server = stack.use(
    await RegistryServer.start({ referrersApi: options.referrersApi ?? true }),
  );
  const image = makeImage({
    layers: [
      [file("etc/a", seededBytes(300_000, 1)), file("etc/b", utf8("b"))],
      [file("usr/c", seededBytes(200_000, 2))],
    ].map((entries) => ({ entries })),
  });
  await putImage(server, "app", "v1", image);
  const logger = new RecordingLogger();
  const environment = stack.use(
    await openEnvironment({ workers: 1, log: logger }),
  );
  await publishImage(environment, {
    source: `${server.host}/app:v1`,
    virtualSize: 2 ** 30,
    formats: [options.format ?? "turbo"],
    tag: "v1-obd",
    jobs: 1,
  });
  const owned = stack.move();
  return {
    server,
    environment,
    logger,
    reference: `${server.host}/app:v1`,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

async function found(s: Setup, reference = s.reference) {
  await using image = await openImage(s.environment, reference, {
    traces: true,
  });
  return (await image.traces()).records;
}

for (const referrersApi of [true, false]) {
  Deno.test(
    `a pushed trace is found with its image, ${
      referrersApi ? "by the API" : "by the fallback tag"
    }`,
    async () => {
      await using s = await setup({ referrersApi });
      assert.deepEqual(await found(s), []);
      const first = [device(0), device(65536, 8192)];
      const pushed = await pushTrace(s.environment, {
        image: s.reference,
        records: first,
      });
      assert.equal(pushed.isNew, true);
      assert.deepEqual(await found(s), first);
      assert.deepEqual(await found(s, `${s.reference}-obd`), first);
      // The same again changes nothing; another one counts from then on.
      const again = await pushTrace(s.environment, {
        image: `${s.reference}-obd`,
        records: first,
      });
      assert.deepEqual(again, { ...pushed, isNew: false });
      for (let i = 1; i < 12; i++) {
        await pushTrace(s.environment, {
          image: s.reference,
          records: [device(i * 4096)],
        });
      }
      assert.deepEqual(await found(s), [device(11 * 4096)]);
      assert.equal(s.logger.count("ignoring a trace"), 0);
    },
  );
}

Deno.test("a trace of another layout of the image is left alone", async () => {
  await using s = await setup();
  await pushTrace(s.environment, { image: s.reference, records: [device(0)] });
  await publishImage(s.environment, {
    source: s.reference,
    virtualSize: 2 ** 31,
    tag: "larger",
    referrer: false,
    jobs: 1,
  });
  assert.deepEqual(await found(s, `${s.server.host}/app:larger`), []);
  assert.equal(
    s.logger.count("traces are of other layouts of the image"),
    1,
  );
});

Deno.test("a trace fits every form of an image that has the same device", async () => {
  await using s = await setup();
  const records = [device(65536)];
  await pushTrace(s.environment, { image: s.reference, records });
  await publishImage(s.environment, {
    source: s.reference,
    virtualSize: 2 ** 30,
    formats: ["overlaybd"],
    tag: "native",
    jobs: 1,
  });
  assert.deepEqual(await found(s, `${s.server.host}/app:native`), records);
});

Deno.test("what is no trace of the image is refused when it is pushed", async () => {
  await using s = await setup();
  const push = (records: TraceRecord[]) =>
    pushTrace(s.environment, { image: s.reference, records });
  await assert.rejects(push([]), /records are none/);
  await assert.rejects(push([device(2 ** 30 - 512)]), /behind the end/);
  await assert.rejects(
    push([{ layer: 2, offset: 0, length: 1 }]),
    /of layer 2, which the image has not/,
  );
  await assert.rejects(
    push([{ layer: 1, offset: 2 ** 40, length: 1 }]),
    /behind the end of layer 1/,
  );
  await assert.rejects(
    push(Array.from({ length: 400_000 }, (_, i) => device(i * 512, 512))),
    /at most 8388608 are read with an image/,
  );
});

Deno.test("planted artifacts cost a line and nothing else", async () => {
  await using s = await setup();
  await pushTrace(s.environment, { image: s.reference, records: [device(0)] });
  await using repository = await s.environment.openRepository(
    parseReference(s.reference),
  );
  const { descriptor: subject } = await repository.resolve("v1");
  const [good] = await repository.referrers(subject.digest, TYPE);
  const plant = async (
    bytes: Uint8Array<ArrayBuffer>,
    change: (manifest: Record<string, unknown>) => void,
  ) => {
    const layer = {
      mediaType: TYPE,
      digest: sha256Digest(bytes),
      size: bytes.length,
    };
    await repository.pushBlob(layer, {
      async *open() {
        yield bytes.slice();
      },
    });
    const { bytes: text } = await repository.resolve(good!.digest);
    const manifest = JSON.parse(new TextDecoder().decode(text));
    manifest.layers = [layer];
    manifest.annotations["io.obd.trace.serial"] = "1000";
    change(manifest);
    await repository.pushManifest(
      utf8(JSON.stringify(manifest)),
      manifest.mediaType,
    );
  };
  // Many layers, and none: left out without a word, as no trace of this kind.
  await plant(utf8("x"), (m) => {
    const layers = m.layers as unknown[];
    layers.push(layers[0]);
  });
  await plant(utf8("y"), (m) => m.layers = []);
  assert.deepEqual(await found(s), [device(0)]);
  // One that counts, by its number, and is garbage.
  await plant(utf8("no trace at all, but long enough"), () => {});
  assert.deepEqual(await found(s), []);
  assert.equal(s.logger.count("cannot use a trace"), 1);
  // And one that says that it is small and is large.
  await plant(encodeTrace([device(4096)]), (m) => {
    m.annotations = {
      ...m.annotations as object,
      "io.obd.trace.serial": "2000",
    };
    (m.layers as { size: number }[])[0]!.size = 100_000_000;
  });
  assert.deepEqual(await found(s), []);
  assert.equal(s.logger.count("cannot use a trace"), 2);
});

Deno.test("a registry that does not list referrers does not keep an image from opening", async () => {
  await using s = await setup();
  s.server.faults.add({
    path: /referrers|sha256-/,
    times: 1000,
    fault: { kind: "status", status: 403 },
  });
  assert.deepEqual(await found(s, `${s.reference}-obd`), []);
  assert.equal(s.logger.count("cannot look for traces"), 1);
});

Deno.test("an acceleration layer goes on top of a native image and is read from there", async () => {
  await using s = await setup({ format: "overlaybd" });
  const image = `${s.server.host}/app:v1-obd`;
  let records: TraceRecord[];
  {
    await using opened = await openImage(s.environment, image);
    const extents = [...opened.source.extents(0, 2 ** 30)]
      .filter((e) => e.kind === "data");
    records = extents.map((e) => device(e.offset, e.length));
    const { records: layered, leftOut } = toLayers(opened, records);
    assert.equal(leftOut, 0);
    assert.ok(layered.every((r) => r.layer < 2 && r.length <= 2 ** 20));
    // There and back: the same bytes of the device.
    const total = (list: readonly TraceRecord[]) =>
      list.reduce((sum, r) => sum + r.length, 0);
    assert.equal(total(layered), total(records));
    assert.equal(total(toDevice(opened, layered)), total(records));
  }
  const pushed = await pushAcceleration(s.environment, {
    image,
    records,
    tag: "fast",
  });
  assert.equal(pushed.leftOut, 0);
  const fast = `${s.server.host}/app:fast`;
  const read = await found(s, fast);
  assert.ok(read.length > 0 && read.every((r) => r.layer < 2));
  // Once more replaces the layer, and the same trace gives the same image.
  const again = await pushAcceleration(s.environment, {
    image: fast,
    records,
    tag: "faster",
  });
  assert.equal(again.digest, pushed.digest);
  await using plain = await openImage(s.environment, image);
  await using accelerated = await openImage(s.environment, fast);
  assert.equal(accelerated.layers.length, plain.layers.length);
  assert.equal(accelerated.source.size, plain.source.size);
});

Deno.test("an acceleration layer cannot say what is read of original layers", async () => {
  await using s = await setup();
  await using opened = await openImage(s.environment, s.reference);
  const { table } = opened.source;
  const row = [...Array(table.count).keys()].find((i) =>
    [...opened.source.origins(table.offset[i]! * 512, 512)][0]?.isTarget
  )!;
  const records = [device(table.offset[row]! * 512, 512)];
  await assert.rejects(
    pushAcceleration(s.environment, {
      image: `${s.reference}-obd`,
      records,
      tag: "fast",
    }),
    /push the trace as a referrer/,
  );
  await assert.rejects(
    pushAcceleration(s.environment, {
      image: s.reference,
      records: [device(0)],
      tag: "fast",
    }),
    { code: "usage" },
  );
});

Deno.test({
  name: "readAccelerationLayer() takes the tars of every writer",
  ignore: !requires("tar"),
  fn: async () => {
    const records = [{ layer: 1, offset: 4096, length: 8192 }, device(0)];
    const dir = await Deno.makeTempDir({ prefix: "obd-accel-" });
    try {
      await Deno.writeFile(`${dir}/trace`, encodeTrace(records));
      for (const format of ["ustar", "gnu", "pax"]) {
        const { success, stdout } = await new Deno.Command("tar", {
          args: ["-C", dir, `--format=${format}`, "-cf", "-", "./trace"],
        }).output();
        assert.ok(success);
        assert.deepEqual(readAccelerationLayer(stdout), records, format);
      }
      // And tar reads ours.
      await Deno.writeFile(`${dir}/a.tar`, writeAccelerationLayer(records));
      const { stdout } = await new Deno.Command("tar", {
        args: ["-xOf", `${dir}/a.tar`, "trace"],
      }).output();
      assert.deepEqual(stdout, encodeTrace(records));
    } finally {
      await Deno.remove(dir, { recursive: true });
    }
  },
});

Deno.test("readAccelerationLayer() refuses what is none", () => {
  const records = [{ layer: 1, offset: 4096, length: 8192 }];
  const tar = writeAccelerationLayer(records);
  assert.deepEqual(readAccelerationLayer(tar), records);
  assert.throws(() => readAccelerationLayer(tar.subarray(0, 540)));
  const renamed = tar.slice();
  renamed[0] = "T".charCodeAt(0);
  renamed.set(utf8("0007532"), 148); // wrong checksum
  assert.throws(() => readAccelerationLayer(renamed));
  assert.throws(
    () => readAccelerationLayer(new Uint8Array(1024)),
    /trace is missing/,
  );
  const damaged = tar.slice();
  damaged[512 + 24 + 8]! ^= 1;
  assert.throws(() => readAccelerationLayer(damaged), /checksum/);
});
