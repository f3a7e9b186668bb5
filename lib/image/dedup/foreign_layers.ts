/** Native layers that overlaybd's convertor noted one by one: table `overlaybd_layers`. */

import { IntegrityError, NotFoundError } from "../../io/mod.ts";
import {
  type Descriptor,
  MediaType,
  type Repository,
} from "../../registry/mod.ts";
import { chainId } from "../chain_key.ts";
import type { Reuse, ReuseFinder, ReuseRequest } from "../find_reusable.ts";
import { isPassing } from "../reuse.ts";
import type { LayerRow } from "./database.ts";
import { openStack } from "./foreign_stack.ts";

/** Rows that are looked at, each with requests to the registry. */
const ATTEMPTS_MAX = 4;

/** The longest chain of layers that rows of `overlaybd_layers` name, all of one repository. */
export async function findForeignLayers(
  finder: ReuseFinder,
  request: ReuseRequest,
  longerThan: number,
): Promise<Reuse | undefined> {
  const { diffIds } = request.source.config;
  const chainIds = diffIds.map((_, i) => chainId(diffIds.slice(0, i + 1)));
  const rows = await finder.database!.ask(
    [],
    (database) => database.findLayers(finder.place!, chainIds),
  );
  const chains = chainsOf(rows, chainIds, finder.place!.repository)
    .filter((chain) => chain.length > longerThan);
  for (const chain of chains.slice(0, ATTEMPTS_MAX)) {
    const [bottom] = chain;
    try {
      const repository = await finder.open(bottom!);
      const { descriptors, gone } = await presentLayers(
        finder,
        repository,
        chain,
      );
      for (const row of gone) {
        await finder.forget(
          "overlaybd_layers",
          row,
          (database) => database.deleteLayer(row),
        );
      }
      if (descriptors.length <= longerThan) continue;
      const from = finder.origin(bottom!, "overlaybd_layers");
      return await openStack(repository, descriptors, request, from);
    } catch (error) {
      const repository = `${bottom!.host}/${bottom!.repository}`;
      finder.complain(error, { repository });
      if (isPassing(error)) break;
    }
  }
  return undefined;
}

/** Rows from the bottom up without a gap, of each repository: longest first, then those of `own`. */
function chainsOf(
  rows: readonly LayerRow[],
  chainIds: readonly string[],
  own: string,
): LayerRow[][] {
  const byRepository = Map.groupBy(rows, (row) => row.repository);
  const chains = [...byRepository.values()].map((found) => {
    const byChain = new Map(found.map((row) => [row.chainId, row]));
    const gap = chainIds.findIndex((id) => !byChain.has(id));
    return chainIds.slice(0, gap < 0 ? undefined : gap)
      .map((id) => byChain.get(id)!);
  }).filter((chain) => chain.length > 0);
  const isOther = (chain: LayerRow[]) => Number(chain[0]!.repository !== own);
  return chains.sort((a, b) => b.length - a.length || isOther(a) - isOther(b));
}

/**
 * Descriptors of the layers that are there with the size that their row says.
 *
 * @returns Also the rows that must go: one whose blob has gone, and those above
 * it, which nothing can be put on any more.
 */
async function presentLayers(
  finder: ReuseFinder,
  repository: Repository,
  chain: readonly LayerRow[],
): Promise<{ descriptors: Descriptor[]; gone: readonly LayerRow[] }> {
  const { signal } = finder.environment;
  const descriptors: Descriptor[] = [];
  for (const [i, { digest, size }] of chain.entries()) {
    let found: number;
    try {
      found = await repository.blobSize(digest, { signal });
    } catch (error) {
      if (!(error instanceof NotFoundError)) throw error;
      return { descriptors, gone: chain.slice(i) };
    }
    if (found !== size) {
      throw new IntegrityError(
        `Size of layer "${digest}" in the database's row`,
        String(found),
        String(size),
      );
    }
    descriptors.push({ mediaType: MediaType.ociLayer, digest, size });
  }
  return { descriptors, gone: [] };
}
