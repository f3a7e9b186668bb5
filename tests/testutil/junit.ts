/** Counts of a JUnit file as `deno test --junit-path` writes it. */

/** @returns Counts over all test cases; an empty or broken file counts nothing. */
export function parseJUnit(
  xml: string,
): { passed: number; failed: number; skipped: number } {
  const counts = { passed: 0, failed: 0, skipped: 0 };
  const cases = xml.matchAll(
    /<testcase\b[^>]*?(\/>|>([\s\S]*?)<\/testcase>)/g,
  );
  for (const [, , body = ""] of cases) {
    if (/<(failure|error)\b/.test(body)) counts.failed++;
    else if (/<skipped\b/.test(body)) counts.skipped++;
    else counts.passed++;
  }
  return counts;
}
