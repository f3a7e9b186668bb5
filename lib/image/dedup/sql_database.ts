/** A {@linkcode ConversionDatabase} of any SQL engine. */

import type { SqlConnection, SqlRow, SqlValue } from "./connection.ts";
import type {
  ChainRow,
  ConversionDatabase,
  LayerRow,
  ManifestRow,
  Place,
} from "./database.ts";
import { chainRow, layerRow, manifestRow } from "./rows.ts";
import {
  LAYER_VERSION,
  MANIFEST_VERSION,
  prepareSchema,
  type Schema,
} from "./schema.ts";

/** Rows of one lookup: a base image may have been converted in any number of repositories. */
const ROWS_MAX = 256;
/** Repositories whose layers are looked at, beside the place's own. */
const REPOSITORIES_MAX = 4;
/** Parameters of one statement; the longest chains are asked for if there are more. */
const KEYS_MAX = 1000;

const OWN_FIRST = "CASE WHEN repo = ? THEN 0 ELSE 1 END, repo";

/** Opened on first use, so that a build that needs no database never waits for one. */
export class SqlDatabase implements ConversionDatabase {
  readonly name: string;
  readonly #db: SqlConnection;
  readonly #readOnly: boolean;
  #schema: Promise<Schema | undefined> | undefined;

  /**
   * @param db Owned.
   * @param options `readOnly`: tables that are absent are not made but empty.
   */
  constructor(
    db: SqlConnection,
    options: { readOnly?: boolean | undefined } = {},
  ) {
    this.#db = db;
    this.name = db.name;
    this.#readOnly = options.readOnly ?? false;
  }

  /** @returns Undefined where there is nothing to read. */
  #prepared(): Promise<Schema | undefined> {
    return this.#schema ??= prepareSchema(this.#db, this.#readOnly);
  }

  async #preparedToChange(): Promise<Schema> {
    const schema = await this.#prepared();
    if (this.#readOnly || !schema) {
      throw new TypeError(`${this.name} was opened to be read`);
    }
    return schema;
  }

  async #rows<T>(
    sql: string,
    values: readonly SqlValue[],
    parse: (row: SqlRow) => T | undefined,
  ): Promise<T[]> {
    const rows = await this.#db.query(`${sql} LIMIT ${ROWS_MAX}`, values);
    return rows.slice(0, ROWS_MAX).map(parse).filter((r) => r !== undefined);
  }

  async findChains(
    place: Place,
    keys: readonly string[],
  ): Promise<ChainRow[]> {
    if (keys.length === 0 || !await this.#prepared()) return [];
    const wanted = keys.slice(-KEYS_MAX);
    const rows = await this.#rows(
      `SELECT host, repo, chain_key, manifest_digest, layer_count FROM obd_chains WHERE host = ? AND chain_key IN (${
        list(wanted)
      }) ORDER BY layer_count DESC, ${OWN_FIRST}`,
      [place.host, ...wanted, place.repository],
      chainRow,
    );
    return rows.filter((r) => wanted.includes(r.chainKey) && isOn(place, r));
  }

  async addChain(row: ChainRow): Promise<boolean> {
    await this.#preparedToChange();
    return await this.#db.insert(
      "INSERT INTO obd_chains (host, repo, chain_key, manifest_digest, layer_count) VALUES (?, ?, ?, ?, ?)",
      [
        row.host,
        row.repository,
        row.chainKey,
        row.manifestDigest,
        row.layerCount,
      ],
    );
  }

  async deleteChain(row: ChainRow): Promise<void> {
    await this.#preparedToChange();
    await this.#db.run(
      "DELETE FROM obd_chains WHERE host = ? AND repo = ? AND chain_key = ? AND manifest_digest = ?",
      [row.host, row.repository, row.chainKey, row.manifestDigest],
    );
  }

  async findLayers(
    place: Place,
    chainIds: readonly string[],
  ): Promise<LayerRow[]> {
    if (chainIds.length === 0) return [];
    const schema = await this.#prepared();
    if (!schema) return [];
    const version = schema.layersHaveVersion
      ? ` AND version = '${LAYER_VERSION}'`
      : "";
    const wanted = chainIds.slice(0, ROWS_MAX);
    const where =
      `FROM overlaybd_layers WHERE host = ?${version} AND chain_id IN (${
        list(wanted)
      })`;
    const others = await this.#db.query(
      `SELECT repo, COUNT(*) AS layers ${where} AND repo <> ? GROUP BY repo ORDER BY layers DESC, repo LIMIT ${REPOSITORIES_MAX}`,
      [place.host, ...wanted, place.repository],
    );
    const repositories = [
      place.repository,
      ...others.slice(0, REPOSITORIES_MAX).map(({ repo }) => String(repo)),
    ];
    const found: LayerRow[] = [];
    for (const repository of repositories) {
      const rows = await this.#rows(
        `SELECT host, repo, chain_id, data_digest, data_size ${where} AND repo = ?`,
        [place.host, ...wanted, repository],
        layerRow,
      );
      found.push(...rows.filter((row) => isOn(place, row)));
    }
    return found;
  }

  async hasOtherLayer(row: LayerRow): Promise<boolean> {
    if (!await this.#prepared()) return false;
    const rows = await this.#db.query(
      "SELECT data_digest FROM overlaybd_layers WHERE host = ? AND chain_id = ? AND data_digest <> ? LIMIT 1",
      [row.host, row.chainId, row.digest],
    );
    return rows.length > 0;
  }

  async addLayer(row: LayerRow): Promise<boolean> {
    const { layersHaveVersion } = await this.#preparedToChange();
    const values = [
      row.host,
      row.repository,
      row.chainId,
      row.digest,
      row.size,
    ];
    return await this.#insert(
      "overlaybd_layers",
      ["host", "repo", "chain_id", "data_digest", "data_size"],
      values,
      layersHaveVersion ? LAYER_VERSION : undefined,
    );
  }

  async deleteLayer(row: LayerRow): Promise<void> {
    await this.#preparedToChange();
    await this.#db.run(
      "DELETE FROM overlaybd_layers WHERE host = ? AND repo = ? AND chain_id = ? AND data_digest = ?",
      [row.host, row.repository, row.chainId, row.digest],
    );
  }

  async findManifests(
    place: Place,
    sourceDigest: string,
    mediaType: string,
  ): Promise<ManifestRow[]> {
    const schema = await this.#prepared();
    if (!schema) return [];
    const version = schema.manifestsHaveVersion
      ? ` AND version = '${MANIFEST_VERSION}'`
      : "";
    const rows = await this.#rows(
      `SELECT host, repo, src_digest, out_digest, data_size, mediatype FROM overlaybd_manifests WHERE host = ? AND src_digest = ? AND mediatype = ?${version} ORDER BY ${OWN_FIRST}`,
      [place.host, sourceDigest, mediaType, place.repository],
      manifestRow,
    );
    return rows.filter((row) =>
      row.sourceDigest === sourceDigest && row.mediaType === mediaType &&
      isOn(place, row)
    );
  }

  async addManifest(row: ManifestRow): Promise<boolean> {
    const { manifestsHaveVersion } = await this.#preparedToChange();
    return await this.#insert(
      "overlaybd_manifests",
      ["host", "repo", "src_digest", "out_digest", "data_size", "mediatype"],
      [
        row.host,
        row.repository,
        row.sourceDigest,
        row.digest,
        row.size,
        row.mediaType,
      ],
      manifestsHaveVersion ? MANIFEST_VERSION : undefined,
    );
  }

  async deleteManifest(row: ManifestRow): Promise<void> {
    await this.#preparedToChange();
    await this.#db.run(
      "DELETE FROM overlaybd_manifests WHERE host = ? AND repo = ? AND src_digest = ? AND mediatype = ? AND out_digest = ?",
      [row.host, row.repository, row.sourceDigest, row.mediaType, row.digest],
    );
  }

  #insert(
    table: string,
    columns: string[],
    values: SqlValue[],
    version: string | undefined,
  ): Promise<boolean> {
    if (version !== undefined) {
      columns = [...columns, "version"];
      values = [...values, version];
    }
    return this.#db.insert(
      `INSERT INTO ${table} (${columns.join(", ")}) VALUES (${list(values)})`,
      values,
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#db[Symbol.asyncDispose]();
  }
}

/** One `?` for each. */
function list(values: readonly unknown[]): string {
  return values.map(() => "?").join(", ");
}

/** Texts are compared without case by some collations; a registry's name is in lower case. */
function isOn(place: Place, row: Place): boolean {
  return row.host === place.host;
}
