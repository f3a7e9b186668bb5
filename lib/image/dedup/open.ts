/** Opening a database of conversions by its settings. */

import type { ConversionDatabase } from "./database.ts";
import { MySqlConnection } from "./mysql.ts";
import type { DatabaseSettings } from "./settings.ts";
import { SqlDatabase } from "./sql_database.ts";
import { SqliteConnection } from "./sqlite.ts";

/**
 * Opens a database. Nothing is connected or made before the first lookup.
 *
 * @returns Undefined for none.
 */
export function openConversionDatabase(
  settings: DatabaseSettings,
): ConversionDatabase | undefined {
  switch (settings.kind) {
    case "none":
      return undefined;
    case "sqlite":
      return new SqlDatabase(new SqliteConnection(settings.path));
    case "mysql":
      return new SqlDatabase(new MySqlConnection(settings.mysql));
  }
}
