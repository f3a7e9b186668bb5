/** Opening a database of conversions by its settings. */

import type { ConversionDatabase } from "./database.ts";
import { MySqlConnection } from "./mysql.ts";
import type { DatabaseSettings } from "./settings.ts";
import { SqlDatabase } from "./sql_database.ts";
import { SqliteConnection } from "./sqlite.ts";

/**
 * Opens a database. Nothing is connected or made before the first lookup.
 *
 * @param options `readOnly`: nothing is made at all; what is absent is empty.
 * @returns Undefined for none.
 */
export function openConversionDatabase(
  settings: DatabaseSettings,
  options: { readOnly?: boolean | undefined } = {},
): ConversionDatabase | undefined {
  switch (settings.kind) {
    case "none":
      return undefined;
    case "sqlite":
      return new SqlDatabase(
        new SqliteConnection(settings.path, options),
        options,
      );
    case "mysql":
      return new SqlDatabase(new MySqlConnection(settings.mysql), options);
  }
}
