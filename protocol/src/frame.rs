//! Frames: 4 bytes of magic and version, 4 bytes of payload length (little endian), the payload in
//! postcard's wire format.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// `NER` and the protocol's version. It changes with every change of a message, so that a session
/// that still runs an older library than the engine (or the reverse) gets a clear error.
pub const MAGIC: [u8; 4] = *b"NER\x01";
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 8;
/// Largest payload, bytes. PostgreSQL's own values end at 1 GB.
pub const MAX_PAYLOAD_BYTES: usize = 1 << 30;

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("the peer speaks another version of the protocol")]
    Version,
    #[error("a frame of {0} bytes is larger than the limit of {MAX_PAYLOAD_BYTES} bytes")]
    TooLarge(usize),
    #[error("the message cannot be decoded: {0}")]
    Decode(postcard::Error),
    #[error("the message cannot be encoded: {0}")]
    Encode(postcard::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A whole frame around `message`.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = MAGIC.to_vec();
    frame.extend_from_slice(&[0; 4]);
    let mut frame = postcard::to_extend(message, frame).map_err(FrameError::Encode)?;
    let payload = frame.len() - HEADER_BYTES;
    if payload > MAX_PAYLOAD_BYTES {
        return Err(FrameError::TooLarge(payload));
    }
    frame[4..HEADER_BYTES].copy_from_slice(&(payload as u32).to_le_bytes());
    Ok(frame)
}

/// The message in a frame's payload.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, FrameError> {
    postcard::from_bytes(payload).map_err(FrameError::Decode)
}

/// Payload length that a frame's header announces.
pub fn payload_len(header: [u8; HEADER_BYTES]) -> Result<usize, FrameError> {
    let [m0, m1, m2, m3, l0, l1, l2, l3] = header;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(FrameError::Version);
    }
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if len > MAX_PAYLOAD_BYTES {
        return Err(FrameError::TooLarge(len));
    }
    Ok(len)
}

/// Reads one message from a blocking stream. `Ok(None)`: the stream ended before a frame began.
pub fn read<T: DeserializeOwned>(stream: &mut impl Read) -> Result<Option<T>, FrameError> {
    let mut header = [0; HEADER_BYTES];
    if stream.read(&mut header[..1])? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut header[1..])?;
    let len = payload_len(header)?;
    let mut payload = Vec::new();
    // `take` keeps a lying header from allocating its length at once.
    stream.take(len as u64).read_to_end(&mut payload)?;
    if payload.len() < len {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    decode(&payload).map(Some)
}

/// Writes one message to a blocking stream.
pub fn write<T: Serialize>(stream: &mut impl Write, message: &T) -> Result<(), FrameError> {
    stream.write_all(&encode(message)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Mention, Response, Span};

    fn response() -> Response {
        Response::Mentions {
            fingerprint: "f".into(),
            texts: vec![
                vec![Mention {
                    span: Span { start: 1, end: 4 },
                    text: "é🦕".into(),
                    score: 0.5,
                    embedding: vec![0.25, -1.0, f32::MIN_POSITIVE],
                }],
                vec![],
            ],
        }
    }

    #[test]
    fn a_message_survives_the_wire() {
        let frame = encode(&response()).unwrap();
        let mut stream = frame.as_slice();
        assert_eq!(read(&mut stream).unwrap(), Some(response()));
        assert_eq!(read::<Response>(&mut stream).unwrap(), None);
    }

    #[test]
    fn another_version_is_named() {
        let mut frame = encode(&response()).unwrap();
        frame[3] += 1;
        let error = read::<Response>(&mut frame.as_slice()).unwrap_err();
        assert!(matches!(error, FrameError::Version));
    }

    #[test]
    fn a_frame_that_ends_early_is_an_error_at_every_length() {
        let frame = encode(&response()).unwrap();
        for cut in 1..frame.len() {
            assert!(
                read::<Response>(&mut &frame[..cut]).is_err(),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn garbage_does_not_allocate_what_it_announces() {
        let mut frame = MAGIC.to_vec();
        frame.extend_from_slice(&u32::MAX.to_le_bytes());
        let error = read::<Response>(&mut frame.as_slice()).unwrap_err();
        assert!(matches!(error, FrameError::TooLarge(_)));
    }
}
