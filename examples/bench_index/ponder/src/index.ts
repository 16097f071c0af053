import { replaceBigInts } from "ponder";
import { ponder } from "ponder:registry";
import schema from "ponder:schema";
import config from "../ponder.config";

// Every event of every contract: one row with what it says.
for (const [contract, { abi }] of Object.entries<any>(config.contracts)) {
  for (const { name } of abi.filter((item: any) => item.type === "event")) {
    ponder.on(`${contract}:${name}` as never, async ({ event, context }: any) => {
      const args = replaceBigInts(event.args, String);
      await context.db.insert(schema.event).values({ id: event.id, contract, name, block: event.block.number, args });
    });
  }
}
