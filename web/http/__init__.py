"""HTTP/1.1 over sockets: accepting, connections, requests and answers, and the hand-over of WebSockets."""
