/**
 * The tables. Those of overlaybd are as accelerated-container-image defines them
 * (cmd/convertor/resources/samples/mysql.conf), in either of its versions:
 * newer ones have a column `version`, which names the convertor that wrote a
 * row (pkg/version/version.go: UserspaceVersion). Tables that are absent are
 * made; those of overlaybd without that column.
 *
 * overlaybd's rows know native layers only, and neither block size nor codec
 * nor virtual size. What obd needs to find again stands in a table of its own,
 * which overlaybd's convertor never looks at.
 */

import { errorText, ObdError } from "../../io/mod.ts";
import type { SqlConnection } from "./connection.ts";

/** What a newer convertor writes into `overlaybd_layers.version`. */
export const LAYER_VERSION = "1-v0";
/** What a newer convertor writes into `overlaybd_manifests.version`. */
export const MANIFEST_VERSION = "1";

/** What was found out about the tables. */
export interface Schema {
  layersHaveVersion: boolean;
  manifestsHaveVersion: boolean;
}

interface Table {
  name: string;
  columns: string[];
  /** Primary key and further parts, as SQL. */
  key: string;
  index: [name: string, columns: string];
}

const TEXT = "varchar(255) NOT NULL";

/** The character set of overlaybd's definition: keys of four columns fit into an index. */
const MYSQL_OPTIONS = " DEFAULT CHARSET=utf8";

const TABLES: readonly Table[] = [
  {
    name: "overlaybd_layers",
    columns: [
      `host ${TEXT}`,
      `repo ${TEXT}`,
      `chain_id ${TEXT}`,
      `data_digest ${TEXT}`,
      "data_size bigint NOT NULL",
    ],
    key: "host, repo, chain_id",
    index: ["index_registry_chainId", "host, chain_id"],
  },
  {
    name: "overlaybd_manifests",
    columns: [
      `host ${TEXT}`,
      `repo ${TEXT}`,
      `src_digest ${TEXT}`,
      `out_digest ${TEXT}`,
      "data_size bigint NOT NULL",
      `mediatype ${TEXT}`,
    ],
    key: "host, repo, src_digest, mediatype",
    index: ["index_registry_src_digest", "host, src_digest, mediatype"],
  },
  {
    name: "obd_chains",
    columns: [
      `host ${TEXT}`,
      `repo ${TEXT}`,
      "chain_key char(64) NOT NULL",
      `manifest_digest ${TEXT}`,
      "layer_count int NOT NULL",
    ],
    key: "host, repo, chain_key",
    index: ["obd_chains_by_key", "host, chain_key"],
  },
];

/**
 * Makes the tables that are absent and looks at those that are there.
 *
 * @param readOnly Nothing is made.
 * @returns Undefined where a table is absent and nothing may be made.
 * @throws {ObdError} If a table has not the columns that are needed.
 */
export async function prepareSchema(
  db: SqlConnection,
  readOnly: boolean,
): Promise<Schema | undefined> {
  const found = new Map<string, Set<string>>();
  for (const table of TABLES) {
    let columns = await db.columns(table.name);
    if (columns.size === 0) {
      if (readOnly) return undefined;
      await createTable(db, table);
      columns = await db.columns(table.name);
    }
    for (const column of table.columns) {
      const [name] = column.split(" ", 1);
      if (columns.has(name!)) continue;
      throw new ObdError(
        "state",
        `Table "${table.name}" of ${db.name} has no column "${name}"`,
      );
    }
    found.set(table.name, columns);
  }
  return {
    layersHaveVersion: found.get("overlaybd_layers")!.has("version"),
    manifestsHaveVersion: found.get("overlaybd_manifests")!.has("version"),
  };
}

async function createTable(db: SqlConnection, table: Table): Promise<void> {
  const isMySql = db.dialect === "mysql";
  const [index, indexed] = table.index;
  const parts = [
    ...table.columns,
    `PRIMARY KEY (${table.key})`,
    ...(isMySql ? [`KEY ${index} (${indexed})`] : []),
  ];
  try {
    await db.run(
      `CREATE TABLE IF NOT EXISTS ${table.name} (${parts.join(", ")})${
        isMySql ? MYSQL_OPTIONS : ""
      }`,
    );
    if (isMySql) return;
    await db.run(
      `CREATE INDEX IF NOT EXISTS ${index} ON ${table.name} (${indexed})`,
    );
  } catch (error) {
    throw new ObdError(
      "state",
      `Cannot make table "${table.name}" in ${db.name}: ${errorText(error)}`,
      { cause: error },
    );
  }
}
