// Ponder does not start without; nobody asks here.
import { Hono } from "hono";

export default new Hono();
