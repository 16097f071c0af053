import { onchainTable } from "ponder";

// One row per event, whatever its kind.
export const event = onchainTable("event", (t) => ({
  id: t.text().primaryKey(),
  contract: t.text().notNull(),
  name: t.text().notNull(),
  block: t.bigint().notNull(),
  args: t.json(),
}));
