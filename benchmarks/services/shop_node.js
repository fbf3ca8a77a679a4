// SPDX-License-Identifier: Apache-2.0
// A Node service with the shop's fast routes: GET anything, POST echoes the size. Prints its port.
"use strict";
const http = require("http");

const server = http.createServer({ keepAliveTimeout: 75000 }, (request, response) => {
  let size = 0;
  request.on("data", (part) => { size += part.length; });
  request.on("end", () => {
    const found = !request.url.startsWith("/missing");
    const body = JSON.stringify(found ? { ok: true, received: size } : { error: "not found" });
    response.writeHead(found ? 200 : 404, { "Content-Type": "application/json", "Content-Length": body.length });
    response.end(body);
  });
});

server.listen(Number(process.argv[2] || 0), "127.0.0.1", 1024, () => {
  console.log(server.address().port);
});
